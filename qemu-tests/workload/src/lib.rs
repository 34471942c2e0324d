// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Work for a test guest, in which a page that is not the right one cannot go unnoticed.
//!
pub mod anon;
pub mod file_set;
pub mod page;
pub mod report;
