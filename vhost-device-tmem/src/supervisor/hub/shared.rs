// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shared pools, as the worker knows them.

use super::Hub;
use crate::{
    link::ToWorker,
    store::SharedPool,
    supervisor::{changes::SharedNumbers, keep::Name},
};

impl Hub {
    /// Tells the worker which pools are shared, and by whom.
    pub(in crate::supervisor) fn set_shared(&self, pools: Vec<SharedPool>) {
        let mut inner = self.inner();
        let sent = inner.tell(&ToWorker::SetShared { pools }, &[]);
        self.check(&mut inner, sent);
    }

    /// Sees to it that another process knows the numbers of shared pools.
    pub(in crate::supervisor) fn keep_shared(&self, numbers: &SharedNumbers) {
        self.inner().keeper.keep_value(Name::Shared, numbers);
    }
}
