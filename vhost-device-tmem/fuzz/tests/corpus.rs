// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All inputs that were found worth keeping, once more.

use std::{fs, path::Path};

use tmem_fuzz::TARGETS;

#[test]
fn inputs_that_were_kept_do_no_harm() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(name);
        let mut count = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            // Says which one it was if it does harm.
            println!("{}", path.display());
            target(&fs::read(path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{name} has no inputs");
    }
}
