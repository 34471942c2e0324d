// SPDX-License-Identifier: GPL-2.0

//! The counters, in debugfs.

use kernel::{
    debugfs::{
        Dir,
        Scope, //
    },
    prelude::*,
    sync::Arc, //
};

use crate::{
    client::Pool,
    hooks::Client,
    params::InForce, //
};

/// The folder `virtio_tmem` in debugfs, for as long as it lives.
pub(crate) struct Stats {
    _parameters: Pin<KBox<Scope<InForce>>>,
    _folders: [Pin<KBox<Scope<Arc<Client>>>>; 4],
    _top: Dir,
}

impl Stats {
    /// Shows the counters of a client.
    ///
    /// What debugfs cannot show is not shown, which is no error. May sleep.
    pub(crate) fn new(client: &Arc<Client>) -> Result<Self> {
        let top = Dir::new(c"virtio_tmem");
        let pool = |name, pool: Pool| {
            KBox::pin_init(
                top.scope(
                    Ok::<_, Error>(client.clone()),
                    name,
                    move |client: &Arc<Client>, dir| {
                        dir.read_only_file(c"pages", client.pages(pool));
                        client.counters(pool).for_each(|name, counter| {
                            dir.read_only_file(name, counter.as_atomic())
                        });
                    },
                ),
                GFP_KERNEL,
            )
        };
        let queue = KBox::pin_init(
            top.scope(
                Ok::<_, Error>(client.clone()),
                c"queue",
                |client: &Arc<Client>, dir| {
                    dir.read_only_file(c"notifications", client.queues().notifications());
                    dir.read_only_file(c"interrupts", client.queues().interrupts());
                    dir.read_only_file(c"staged", client.staged_pages());
                    dir.read_only_file(c"staging_pages", client.staging_pages());
                },
            ),
            GFP_KERNEL,
        )?;

        let parameters = KBox::pin_init(
            top.scope(Ok::<_, Error>(InForce::new()), c"parameters", InForce::show),
            GFP_KERNEL,
        )?;

        Ok(Self {
            _parameters: parameters,
            _folders: [
                pool(c"frontswap", Pool::Frontswap)?,
                pool(c"cleancache", Pool::Cleancache)?,
                pool(c"shared", Pool::Shared(0))?,
                queue,
            ],
            _top: top,
        })
    }
}
