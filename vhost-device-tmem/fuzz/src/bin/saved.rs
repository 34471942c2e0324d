// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![no_main]
#![allow(missing_docs, reason = "the fuzzer's entry")]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tmem_fuzz::saved(data));
