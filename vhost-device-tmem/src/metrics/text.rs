// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The statistics as OpenMetrics.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{text::encode, DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::{info::Info, MetricType},
    registry::{Registry, Unit},
};

use super::catalog::{Metric, Sort, Values, BUILD, METRICS, PREFIX};
use crate::{control::Stat, store::PoolKind};

/// Returns the statistics as text.
pub(super) fn render(stat: Stat) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    // The library adds the point.
    let help = BUILD.1.trim_end_matches('.');
    registry.register(BUILD.0, help, version);
    registry.register_collector(Box::new(Collected(stat)));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Collected(Stat);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in METRICS {
            let unit = metric.unit.map(|unit| Unit::Other(unit.to_owned()));
            let sort = match metric.sort {
                Sort::Counter => MetricType::Counter,
                Sort::Gauge => MetricType::Gauge,
            };
            let mut samples =
                encoder.encode_descriptor(metric.name, metric.help, unit.as_ref(), sort)?;
            self.samples(metric, &mut samples)?;
        }
        Ok(())
    }
}

impl Collected {
    fn samples(&self, metric: &Metric, samples: &mut MetricEncoder<'_>) -> fmt::Result {
        let Self(stat) = self;
        let mut sample = |labels: &[(&str, &str)], value| match labels {
            [] => number(metric.sort, value, samples),
            labels => number(metric.sort, value, &mut samples.encode_family(&labels)?),
        };
        match metric.values {
            Values::Host(value) => return sample(&[], value(stat)),
            Values::Shared(_) | Values::Member(_) => return self.shared(metric, &mut sample),
            _ => {}
        }
        for guest in &stat.guests {
            let name = ("guest", guest.name.as_str());
            match metric.values {
                // Of no guest.
                Values::Host(_) | Values::Shared(_) | Values::Member(_) => {}
                Values::Guest(value) => sample(&[name], value(guest))?,
                Values::GuestKind(value) => {
                    for kind in PoolKind::ALL {
                        sample(&[name, ("kind", kind.name())], value(guest, kind))?;
                    }
                }
                Values::Window(value) => {
                    if let Some(window) = &guest.window {
                        sample(&[name], value(window))?;
                    }
                }
                Values::WindowKind(value) => {
                    if let Some(window) = &guest.window {
                        for kind in PoolKind::ALL {
                            sample(&[name, ("kind", kind.name())], value(window, kind))?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Samples of shared pools.
    fn shared(
        &self,
        metric: &Metric,
        sample: &mut impl FnMut(&[(&str, &str)], u64) -> fmt::Result,
    ) -> fmt::Result {
        for pool in &self.0.shared {
            let uuid = pool.uuid.to_string();
            let of = ("pool", uuid.as_str());
            match metric.values {
                Values::Shared(value) => sample(&[of], value(pool))?,
                Values::Member(value) => {
                    for member in &pool.members {
                        let labels = [of, ("guest", member.guest.as_str())];
                        sample(&labels, value(&member.counters))?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn number(sort: Sort, value: u64, sample: &mut MetricEncoder<'_>) -> fmt::Result {
    match sort {
        Sort::Counter => sample.encode_counter::<NoLabelSet, _, u64>(&value, None),
        Sort::Gauge => sample.encode_gauge(&value),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        control::{GuestStat, SharedMember, SharedStat, VERSION},
        device::WindowState,
        metrics::names,
        store::{AccessCounters, DroppedKind, PoolCounters},
    };

    fn stat() -> Stat {
        let mut swaps = GuestStat {
            name: "a \"b\"\\\n".to_owned(),
            connected: true,
            persistent_credits: 7,
            window: Some(WindowState {
                hits: u64::MAX,
                ..WindowState::default()
            }),
            ..GuestStat::default()
        };
        swaps.dropped.persistent = DroppedKind {
            counters: PoolCounters {
                puts: 5,
                ..PoolCounters::default()
            },
            ..DroppedKind::default()
        };
        let never = GuestStat {
            name: "never".to_owned(),
            ..GuestStat::default()
        };
        let shared = SharedStat {
            uuid: Uuid::from_u128(0x1f),
            pages: 9,
            members: vec![SharedMember {
                guest: "web".to_owned(),
                counters: AccessCounters {
                    gets_hit: 8,
                    ..AccessCounters::default()
                },
            }],
            ..SharedStat::default()
        };
        Stat {
            version: VERSION,
            worker_starts: 3,
            capacity_bytes: 1 << 30,
            guests: vec![swaps, never],
            shared: vec![shared],
            ..Stat::default()
        }
    }

    #[test]
    fn samples_have_names_labels_and_values() {
        let text = render(stat());
        let guest = r#"guest="a \"b\"\\\n""#;
        let pool = r#"pool="00000000-0000-0000-0000-00000000001f""#;
        let lines = [
            "# TYPE tmem_capacity_bytes gauge".to_owned(),
            "# UNIT tmem_capacity_bytes bytes".to_owned(),
            "tmem_capacity_bytes 1073741824".to_owned(),
            "# TYPE tmem_worker_starts counter".to_owned(),
            "tmem_worker_starts_total 3".to_owned(),
            format!("tmem_guest_connected{{{guest}}} 1"),
            r#"tmem_guest_connected{guest="never"} 0"#.to_owned(),
            format!(r#"tmem_guest_credit_pages{{{guest},kind="persistent"}} 7"#),
            // Of a pool that is gone.
            format!(r#"tmem_guest_put_pages_total{{{guest},kind="persistent"}} 5"#),
            format!("tmem_window_hit_pages_total{{{guest}}} {}", u64::MAX),
            format!("tmem_shared_stored_pages{{{pool}}} 9"),
            format!(r#"tmem_shared_hit_pages_total{{{pool},guest="web"}} 8"#),
            "# EOF".to_owned(),
        ];
        for line in lines {
            assert!(text.lines().any(|of| of == line), "no {line}: {text}");
        }
        assert!(text.ends_with("# EOF\n"));
        // Who has no window has no samples of it.
        assert!(!text.contains(r#"tmem_window_open{guest="never"}"#));
    }

    #[test]
    fn samples_are_those_of_the_catalog() {
        let text = render(stat());
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let mut seen: Vec<_> = samples
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect();
        seen.dedup();
        assert_eq!(seen, names());
        // Each is explained.
        let helps = text.lines().filter(|line| line.starts_with("# HELP "));
        assert_eq!(helps.count(), seen.len());
    }
}
