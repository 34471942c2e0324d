// SPDX-License-Identifier: GPL-2.0

//! A shard against a map, together with a device that is slow, and out of order where it may be, and
//! a window that the device takes back.

mod host;
mod ops;
mod runs;
mod window;
mod world;

use proptest::prelude::*;
use virtio_tmem_logic::index::VERSION_MAX;

use ops::{
    ops,
    ops_on_two_pages,
    ops_with_window,
    Op, //
};
use window::Window;
use world::World;

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 4 } else { count },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn versions() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        VERSION_MAX - 40..=VERSION_MAX,
        VERSION_MAX / 2 - 20..VERSION_MAX / 2 + 20,
        any::<u32>(),
    ]
}

proptest! {
    #![proptest_config(cases(400))]

    /// With as much memory as there can be use for.
    #[test]
    fn with_plenty(ops in ops(250), version in versions()) {
        let mut world = World::new(1 << 14, version, true);
        for op in &ops {
            world.apply(op);
            world.check();
        }
        world.finish();
    }

    /// With memory that comes late and does not suffice.
    #[test]
    fn with_little(ops in ops(250), version in versions(), pages in 0..300usize) {
        let mut world = World::new(pages, version, false);
        for op in &ops {
            world.apply(op);
            world.check();
        }
        world.finish();
    }

}

proptest! {
    #![proptest_config(cases(4000))]

    /// With more happening to each page.
    #[test]
    fn with_two_pages(
        ops in ops_on_two_pages(60),
        version in versions(),
        second in prop::bool::weighted(0.8),
    ) {
        let mut world = World::new(64, version, true);
        if second {
            // Keep the object from being given up.
            world.apply(&Op::Insert(0, 7));
            world.apply(&Op::Worker(1, true));
        }
        for op in &ops {
            world.apply(op);
            world.check();
        }
        world.finish();
    }
}

proptest! {
    #![proptest_config(cases(1000))]

    /// With pages in the window, in chunks that the device takes or asks for.
    #[test]
    fn with_a_window(ops in ops_with_window(120), version in versions(), ephemeral: bool) {
        let mut world = World::new(256, version, true);
        world.window = Window::new(ephemeral);
        for op in &ops {
            world.apply(op);
            world.check();
        }
        world.finish();
    }
}
