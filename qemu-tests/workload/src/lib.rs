// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Work for a test guest, in which a page that is not the right one cannot go unnoticed.
//!
//! Two kinds of content serve that end. [`page`] makes pages that say whose they are, in which
//! place and of which generation, for sets of memory and files too large to be remembered.
//! [`word`] does the same for every eight bytes, for files that are changed at any byte while a
//! [model](tracked) of them is kept.

pub mod anon;
pub mod cases;
pub mod corpus;
pub mod evict;
pub mod file_set;
pub mod mixer;
pub mod order;
pub mod page;
pub mod phase;
pub mod report;
pub mod sys;
pub mod tracked;
pub mod word;
