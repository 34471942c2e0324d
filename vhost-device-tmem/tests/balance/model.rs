// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests made of formulas, and balloons that take their time.

use std::time::Duration;

use serde_json::json;
use vhost_device_tmem::balance::{
    Balancer, GuestStats, Observation, Plan, Reason, Terms, TmemCounters,
};

pub(crate) const MIB: u64 = 1 << 20;

/// Seconds between two looks.
pub(crate) const LOOK: u64 = 5;

pub(crate) fn terms(name: &str, min: u64, max: u64) -> Terms {
    Terms {
        name: name.to_owned(),
        min: min * MIB,
        max: max * MIB,
    }
}

/// A guest that uses `set` MiB, `rate` pages of them a second, all of them as often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Worker {
    pub(crate) set: f64,
    pub(crate) rate: f64,
    /// What of the pages that come back comes from tmem.
    pub(crate) from_tmem: f64,
    /// Whether what it has no room for can be swapped.
    pub(crate) swaps: bool,
    pub(crate) weight: u32,
}

impl Worker {
    pub(crate) const IDLE: Self = Self {
        set: 100.0,
        rate: 0.0,
        from_tmem: 0.0,
        swaps: true,
        weight: 100,
    };

    pub(crate) fn new(set: u64, rate: f64) -> Self {
        Self {
            set: set as f64,
            rate,
            ..Self::IDLE
        }
    }

    /// Returns the pages a second that come back with so many MiB.
    pub(crate) fn back(&self, mib: f64) -> f64 {
        self.rate * (1.0 - mib / self.set).clamp(0.0, 1.0)
    }
}

/// A guest of a [`World`].
#[derive(Clone, Debug)]
pub(crate) struct Inmate {
    pub(crate) worker: Worker,
    pub(crate) mib: u64,
    target: u64,
    /// The MiB that the balloon moves between two looks.
    pub(crate) speed: u64,
    pub(crate) is_there: bool,
    faults: f64,
    hits: f64,
    swapped: f64,
}

/// Guests whose balloons do as they are told, by and by.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) balancer: Balancer,
    pub(crate) inmates: Vec<Inmate>,
    pub(crate) plan: Option<Plan>,
    looks: u64,
}

impl World {
    /// Guests with what they do, and the MiB that they have at first, between 64 MiB and 4 GiB.
    pub(crate) fn of(total: u64, workers: &[(Worker, u64)]) -> Self {
        let all = (0..workers.len()).map(|n| terms(&format!("guest{n}"), 64, 4096));
        Self::new(total, all.collect(), workers)
    }

    pub(crate) fn new(total: u64, terms: Vec<Terms>, workers: &[(Worker, u64)]) -> Self {
        let inmates = workers.iter().map(|(worker, mib)| Inmate {
            worker: *worker,
            mib: *mib,
            target: *mib,
            speed: 256,
            is_there: true,
            faults: 0.0,
            hits: 0.0,
            // What never fitted.
            swapped: if worker.swaps {
                (worker.set - *mib as f64).max(0.0) * 256.0
            } else {
                0.0
            },
        });
        let mut this = Self {
            balancer: Balancer::new(total * MIB, terms).unwrap(),
            inmates: inmates.collect(),
            plan: None,
            looks: 0,
        };
        this.step();
        this
    }

    fn look(&self, inmate: &Inmate) -> Option<Observation> {
        let Worker { set, weight, .. } = inmate.worker;
        let free = (inmate.mib as f64 - set).max(0.0) * MIB as f64;
        let stats: GuestStats = serde_json::from_value(json!({
            "stats": {
                "stat-total-memory": inmate.mib * MIB,
                "stat-free-memory": free as u64,
                "stat-available-memory": free as u64,
                "stat-major-faults": inmate.faults as u64,
                "stat-swap-in": u64::MAX,
                "stat-swap-out": (inmate.swapped as u64) << 12,
                "stat-disk-caches": 0,
            },
            "last-update": 1000 + self.looks * LOOK,
        }))
        .unwrap();
        inmate.is_there.then_some(Observation {
            actual: inmate.mib * MIB,
            ram: None,
            stats,
            tmem: Some(TmemCounters {
                hits: inmate.hits as u64,
                ..TmemCounters::default()
            }),
            weight,
        })
    }

    /// Lets some seconds go by, looks, and does as the plan says.
    pub(crate) fn step(&mut self) {
        self.looks += 1;
        for inmate in &mut self.inmates {
            let back = inmate.worker.back(inmate.mib as f64) * LOOK as f64;
            inmate.faults += back;
            inmate.hits += back * inmate.worker.from_tmem;
            inmate.swapped += if inmate.worker.swaps { back } else { 0.0 };
        }
        let seen: Vec<_> = self.inmates.iter().map(|it| self.look(it)).collect();
        let plan = self.balancer.step(&seen, Duration::from_secs(LOOK));
        for (n, proposal) in plan.proposals.iter().enumerate() {
            if proposal.is_change() && proposal.target_bytes <= proposal.actual_bytes {
                self.tell(n, proposal.target_bytes);
            }
        }
        self.move_balloons();
        let actual = self.inmates.iter().map(|inmate| inmate.mib * MIB);
        let afforded = plan.affordable(&actual.collect::<Vec<_>>());
        for (n, bytes) in afforded.into_iter().enumerate() {
            if bytes > self.inmates[n].mib * MIB {
                self.tell(n, bytes);
            }
        }
        self.move_balloons();
        self.plan = Some(plan);
    }

    fn tell(&mut self, guest: usize, bytes: u64) {
        assert!(self.inmates[guest].is_there);
        self.balancer.told(guest, bytes);
        self.inmates[guest].target = bytes / MIB;
    }

    fn move_balloons(&mut self) {
        for inmate in &mut self.inmates {
            // Memory is given at once, and taken by and by.
            let least = inmate.mib.saturating_sub(inmate.speed / 2);
            inmate.mib = inmate.target.max(least);
        }
    }

    pub(crate) fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    pub(crate) fn sizes(&self) -> Vec<u64> {
        self.inmates.iter().map(|inmate| inmate.mib).collect()
    }

    pub(crate) fn reasons(&self) -> Vec<Reason> {
        let plan = self.plan.as_ref().unwrap();
        plan.proposals.iter().map(|of| of.reason).collect()
    }

    pub(crate) fn doubts(&self) -> Vec<String> {
        let plan = self.plan.as_ref().unwrap();
        plan.doubts.iter().map(ToString::to_string).collect()
    }

    /// Returns the pages a second that come back to whoever needs most.
    pub(crate) fn worst(&self) -> f64 {
        let back = self.inmates.iter().map(|it| it.worker.back(it.mib as f64));
        back.fold(0.0, f64::max)
    }
}
