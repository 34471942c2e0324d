// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the operator says of guests and their memory.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Args;
use serde::{Deserialize, Deserializer};
use vhost_device_tmem::{balance::Terms, config, size};

use crate::{args::Output, failure::Failure};

/// Whose memory is balanced, and how.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// The memory that all these guests have together, such as 12GiB.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    total: Option<u64>,

    /// A guest: its name with the daemon, the socket of its QEMU's monitor (QMP), what it is always
    /// left, and what it never gets more of: web=/run/web.qmp,min=512MiB,max=2GiB. With `,tmem=off` it is
    /// one that the daemon does not know. Repeat it for each guest.
    #[arg(
        long = "guest",
        value_name = "NAME=PATH,min=SIZE,max=SIZE",
        required_unless_present = "config"
    )]
    guests: Vec<GuestOption>,

    /// A file in TOML with the total, and a table for each guest: [guests.web] with monitor, min, max
    /// and tmem. What is on the command line comes before it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Set the balloons, and do not only propose.
    #[arg(long)]
    pub(super) apply: bool,

    /// Go on, and look at the guests every so many seconds.
    #[arg(long, value_name = "SECS", conflicts_with = "sample",
          value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub(super) interval: Option<u64>,

    /// Without --interval, for how many seconds the guests are looked at before anything is proposed.
    #[arg(long, value_name = "SECS", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub(super) sample: u64,

    #[command(flatten)]
    pub(crate) output: Output,
}

/// The memory that there is, and who shares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shared {
    pub(super) total: u64,
    pub(super) guests: Vec<GuestOption>,
}

impl Options {
    /// Returns what is said on the command line and in the file.
    ///
    /// # Errors
    ///
    /// [`Failure::Config`], [`Failure::NoTotal`].
    pub(super) fn shared(&self) -> Result<Shared, Failure> {
        let file: ConfigFile = match &self.config {
            Some(path) => config::read_other(path)?,
            None => ConfigFile::default(),
        };
        let mut guests = self.guests.clone();
        for (name, table) in file.guests {
            if guests.iter().all(|guest| guest.terms.name != name) {
                let (min, max) = (table.min, table.max);
                guests.push(GuestOption {
                    terms: Terms { name, min, max },
                    monitor: table.monitor,
                    has_tmem: table.tmem.unwrap_or(true),
                });
            }
        }
        Ok(Shared {
            total: self.total.or(file.total).ok_or(Failure::NoTotal)?,
            guests,
        })
    }
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    #[serde(default, deserialize_with = "size_or_none")]
    total: Option<u64>,
    #[serde(default)]
    guests: BTreeMap<String, GuestTable>,
}

/// A guest's table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GuestTable {
    monitor: PathBuf,
    #[serde(deserialize_with = "size_of")]
    min: u64,
    #[serde(deserialize_with = "size_of")]
    max: u64,
    tmem: Option<bool>,
}

fn size_of<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    bytes(&text).map_err(|why| serde::de::Error::custom(format!("{text:?} is no size; {why}")))
}

fn size_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    size_of(from).map(Some)
}

/// What is said of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GuestOption {
    pub(super) terms: Terms,
    pub(super) monitor: PathBuf,
    /// Whether the daemon knows it.
    pub(super) has_tmem: bool,
}

fn bytes(text: &str) -> Result<u64, String> {
    size::parse(text)
        .ok_or_else(|| "give a number with a unit, such as 512MiB or 1.5GiB".to_owned())
}

impl std::str::FromStr for GuestOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write it as NAME=PATH,min=SIZE,max=SIZE; a path has no commas";
        let mut parts = text.split(',');
        let named = parts.next().and_then(|first| first.split_once('='));
        let (name, monitor) = named.ok_or(form)?;
        if name.is_empty() || monitor.is_empty() {
            return Err(form.to_owned());
        }
        let (mut min, mut max, mut tmem) = (None, None, None);
        for part in parts {
            let (key, value) = part.split_once('=').ok_or(form)?;
            let is_new = match key {
                "min" => min.replace(of_key(key, value)?).is_none(),
                "max" => max.replace(of_key(key, value)?).is_none(),
                "tmem" => tmem.replace(switch(value)?).is_none(),
                _ => return Err(format!("{key:?} is no key; the keys are min, max and tmem")),
            };
            if !is_new {
                return Err(format!("{key} is said twice; say it once"));
            }
        }
        let missing = |key| format!("{key} is missing; {form}");
        Ok(Self {
            terms: Terms {
                name: name.to_owned(),
                min: min.ok_or_else(|| missing("min"))?,
                max: max.ok_or_else(|| missing("max"))?,
            },
            monitor: monitor.into(),
            has_tmem: tmem.unwrap_or(true),
        })
    }
}

fn of_key(key: &str, value: &str) -> Result<u64, String> {
    bytes(value).map_err(|why| format!("{key} {value:?} is no size; {why}"))
}

fn switch(value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("tmem is on or off, not {value:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_read() {
        let web: GuestOption = "web=/run/web.qmp,min=512MiB,max=2GiB".parse().unwrap();
        assert_eq!(
            web,
            GuestOption {
                terms: Terms {
                    name: "web".to_owned(),
                    min: 512 << 20,
                    max: 2 << 30,
                },
                monitor: "/run/web.qmp".into(),
                has_tmem: true,
            }
        );
        let db: GuestOption = "db=a=b.qmp,tmem=off,max=2G,min=1G".parse().unwrap();
        assert_eq!(db.monitor, PathBuf::from("a=b.qmp"));
        assert!(!db.has_tmem);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = [
            ("", "NAME=PATH"),
            ("web", "NAME=PATH"),
            ("=/run/q,min=1G,max=1G", "NAME=PATH"),
            ("web=,min=1G,max=1G", "NAME=PATH"),
            ("web=/run/q", "min is missing"),
            ("web=/run/q,min=1G", "max is missing"),
            ("web=/run/q,min", "NAME=PATH"),
            ("web=/run/q,min=much,max=1G", "min \"much\" is no size"),
            ("web=/run/q,min=-1,max=1G", "min \"-1\" is no size"),
            ("web=/run/q,min=1G,min=2G,max=3G", "min is said twice"),
            ("web=/run/q,min=1G,max=2G,tmem=maybe", "on or off"),
            ("web=/run/q,least=1G,max=2G", "\"least\" is no key"),
        ];
        for (text, words) in wrong {
            let said = text.parse::<GuestOption>().unwrap_err();
            assert!(said.contains(words), "{text}: {said}");
        }
    }
}
