// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A machine's balloon.

use std::{path::Path, time::Duration};

use serde::{de::DeserializeOwned, Deserialize};
use serde_json::{json, Value};

use super::{shown, Qmp, QmpError};
use crate::balance::GuestStats;

/// Where devices are in QEMU's tree: those that have a name, and the others.
const DEVICES: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];

/// How the type of each device begins that is a balloon, whatever bus it is on.
const BALLOON: &str = "child<virtio-balloon";

/// How often the driver in the guest is asked for figures, in seconds.
const POLLING: &str = "guest-stats-polling-interval";

#[derive(Deserialize)]
struct Node {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Actual {
    actual: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Memory {
    base_memory: u64,
}

/// A machine's balloon.
#[derive(Debug)]
pub struct Balloon {
    qmp: Qmp,
    /// Where it is in QEMU's tree.
    path: String,
    ram: u64,
}

impl Balloon {
    /// Connects to the monitor of a machine, and looks for its balloon.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, QmpError> {
        let mut qmp = Qmp::connect(path, patience)?;
        let memory: Memory = ask(&mut qmp, "query-memory-size-summary", json!({}))?;
        for parent in DEVICES {
            let nodes: Vec<Node> = ask(&mut qmp, "qom-list", json!({"path": parent}))?;
            let mut nodes = nodes.into_iter();
            if let Some(node) = nodes.find(|node| node.kind.starts_with(BALLOON)) {
                return Ok(Self {
                    qmp,
                    path: format!("{parent}/{}", node.name),
                    ram: memory.base_memory,
                });
            }
        }
        Err(QmpError::NoBalloon)
    }

    /// Returns the bytes that the machine was made with.
    pub fn ram(&self) -> u64 {
        self.ram
    }

    /// Has the guest tell figures every so many seconds, or more often where somebody had it do so
    /// already.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn poll_each(&mut self, seconds: u64) -> Result<(), QmpError> {
        let path = self.path.clone();
        let at = json!({"path": path, "property": POLLING});
        let now: u64 = ask(&mut self.qmp, "qom-get", at)?;
        if (1..=seconds).contains(&now) {
            return Ok(());
        }
        let to = json!({"path": path, "property": POLLING, "value": seconds});
        self.qmp.ask("qom-set", to).map(drop)
    }

    /// Returns what the balloon's driver in the guest told last.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn stats(&mut self) -> Result<GuestStats, QmpError> {
        let at = json!({"path": self.path, "property": "guest-stats"});
        ask(&mut self.qmp, "qom-get", at)
    }

    /// Returns the bytes that it leaves the guest now.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn actual(&mut self) -> Result<u64, QmpError> {
        let actual: Actual = ask(&mut self.qmp, "query-balloon", json!({}))?;
        Ok(actual.actual)
    }

    /// Has it leave the guest so many bytes. The guest takes its time.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn set(&mut self, bytes: u64) -> Result<(), QmpError> {
        let to = json!({"value": bytes});
        self.qmp.ask("balloon", to).map(drop)
    }
}

fn ask<T: DeserializeOwned>(qmp: &mut Qmp, command: &str, arguments: Value) -> Result<T, QmpError> {
    let answer = qmp.ask(command, arguments)?;
    serde_json::from_value(answer.clone()).map_err(|error| QmpError::Nonsense {
        command: command.to_owned(),
        what: format!("{}: {error}", shown(answer.to_string().as_bytes())),
    })
}
