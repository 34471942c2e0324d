// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Simulates how guests share memory, and says how it went.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{stdout, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{ensure, Context};
use clap::Parser;
use serde::Serialize;
use tmem_sim::{
    guest::{Told, PAGE},
    measure,
    optimum::optimum,
    scenario::{self, Name},
    sharing::Way,
    trace,
    world::{Scenario, Seen, World},
};

/// Simulates how guests share ephemeral memory: by the daemon's policy, in equal parts, and as one
/// list of pages. Prints JSON.
#[derive(Debug, Parser)]
#[command(name = "tmem-sim", version)]
struct Args {
    /// The guests that are made up
    #[arg(required_unless_present = "trace")]
    scenario: Option<Name>,
    /// A recorded trace instead: lines of SECONDS,GUEST,PAGE
    #[arg(long, value_name = "FILE", conflicts_with_all = ["scenario", "guests"])]
    trace: Option<PathBuf>,
    /// Pages of the page cache of guests of a recorded trace
    #[arg(long, default_value_t = 0, requires = "trace")]
    cache: u64,
    /// How many guests there are, 1 to 1000
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    guests: u64,
    /// Seconds that are simulated
    #[arg(long, default_value_t = 1800, value_parser = clap::value_parser!(u64).range(60..))]
    seconds: u64,
    /// MiB for each guest
    #[arg(long, default_value_t = scenario::EACH >> 20, value_parser = clap::value_parser!(u64).range(1..))]
    mib: u64,
    /// What chance follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds between two shares that are printed
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// What the policy is told of misses
    #[arg(long, value_enum, default_value_t)]
    told: Told,
    /// Have balloons move guests' own memory, too, as `tmemctl balance` would each so many seconds
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    balloons: Option<u64>,
    /// Write all guests' shares and hits there, as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    scenario: Option<Name>,
    guests: usize,
    capacity: u64,
    seed: u64,
    /// Seconds between two elements of what follows.
    every: u64,
    /// Hits a second that could be had, were shares always as they should be.
    optimum: Vec<f64>,
    weights: Vec<u32>,
    /// Bytes of each guest at the end that would get the most hits.
    best: Vec<u64>,
    ways: BTreeMap<Way, Course>,
}

/// How it went. Averages are over `every` seconds.
#[derive(Debug, Default, Serialize)]
struct Course {
    /// Pages a second that page caches did not have.
    reads: Vec<f64>,
    /// Of these, found.
    hits: Vec<f64>,
    /// Of these, those of all guests but the first.
    others: Vec<f64>,
    /// Bytes a second that moved.
    moved: Vec<f64>,
    /// Jain's index of shares by weight.
    jain: Vec<f64>,
    /// Bytes of the first guests.
    shares: Vec<Vec<u64>>,
    /// Bytes of the first guests' own memory.
    own: Vec<Vec<u64>>,
    /// Bytes of all guests, at the end.
    last: Vec<u64>,
    /// The second from which on hits are those of the end, but for 5 %.
    converged: Option<usize>,
    /// How often shares turned by more than a thirty-second of a guest's part, in the second half; by
    /// guest, on average.
    turns: f64,
}

/// What happened in some seconds.
#[derive(Debug, Default)]
struct Sum {
    reads: f64,
    hits: f64,
    others: f64,
    moved: f64,
}

impl Sum {
    fn add(&mut self, seen: &Seen) {
        self.reads += seen.reads;
        self.hits += seen.hits;
        self.others += seen.hits_by_guest.iter().skip(1).sum::<f64>();
        self.moved += seen.moved as f64;
    }

    fn push(self, course: &mut Course, seconds: f64) {
        course.reads.push(self.reads / seconds);
        course.hits.push(self.hits / seconds);
        course.others.push(self.others / seconds);
        course.moved.push(self.moved / seconds);
    }
}

/// Guests of which shares are printed.
const SHOWN: usize = 12;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut scenario = scenario(&args)?;
    for guest in &mut scenario.guests {
        guest.told = args.told;
    }
    let mut csv = match &args.csv {
        Some(path) => Some(create(path)?),
        None => None,
    };
    let mut ways = BTreeMap::new();
    for way in Way::ALL {
        ways.insert(way, course(&args, &scenario, way, csv.as_mut())?);
    }
    let world = World::new(&scenario, Way::Equal)?;
    let pages = scenario.capacity / PAGE as u64;
    let best = |second: u64| optimum(world.guests(), second as usize, pages);
    let times = (0..args.seconds).step_by(args.every as usize);
    let report = Report {
        scenario: args.scenario,
        guests: scenario.guests.len(),
        capacity: scenario.capacity,
        seed: args.seed,
        every: args.every,
        optimum: times.map(|second| best(second).1).collect(),
        weights: scenario.guests.iter().map(|guest| guest.weight).collect(),
        best: tmem_sim::optimum::bytes(&best(args.seconds - 1).0),
        ways,
    };
    let mut out = BufWriter::new(stdout().lock());
    serde_json::to_writer(&mut out, &report)?;
    writeln!(out)?;
    out.flush()?;
    if let Some(mut csv) = csv {
        csv.flush()?;
    }
    Ok(())
}

fn scenario(args: &Args) -> anyhow::Result<Scenario> {
    let capacity = |guests: u64| guests * (args.mib << 20);
    if let Some(path) = &args.trace {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let traces = trace::read(BufReader::new(file))
            .with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            traces.len() <= 1000,
            "there are more than 1000 guests in it"
        );
        let capacity = capacity(traces.len() as u64);
        return Ok(scenario::recorded(&traces, args.cache, capacity, args.seed));
    }
    let name = args.scenario.context("there is no scenario")?;
    let guests = args.guests as usize;
    Ok(scenario::make(
        name,
        guests,
        capacity(args.guests),
        args.seed,
    ))
}

fn create(path: &Path) -> anyhow::Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut csv = BufWriter::new(file);
    writeln!(csv, "way,second,guest,share,used,hits")?;
    Ok(csv)
}

fn course(
    args: &Args,
    scenario: &Scenario,
    way: Way,
    mut csv: Option<&mut BufWriter<File>>,
) -> anyhow::Result<Course> {
    let mut world = World::new(scenario, way)?;
    if let Some(every) = args.balloons {
        world = world.with_balloons(every as usize)?;
    }
    let mut course = Course::default();
    let mut hits = Vec::new();
    let mut later: Vec<Vec<f64>> = vec![Vec::new(); scenario.guests.len()];
    let mut sum = Sum::default();
    for second in 0..args.seconds {
        let seen = world.step();
        hits.push(seen.hits);
        sum.add(&seen);
        if second >= args.seconds / 2 {
            for (later, share) in later.iter_mut().zip(&seen.shares) {
                later.push(*share as f64);
            }
        }
        if (second + 1) % args.every == 0 {
            std::mem::take(&mut sum).push(&mut course, args.every as f64);
            let by_weight = seen.shares.iter().zip(&scenario.guests);
            let by_weight = by_weight.map(|(share, of)| *share as f64 / f64::from(of.weight));
            course
                .jain
                .push(measure::jain(&by_weight.collect::<Vec<_>>()));
            let shown = seen.shares.len().min(SHOWN);
            course.shares.push(seen.shares[..shown].to_vec());
            course.own.push(seen.own[..shown].to_vec());
            if let Some(csv) = csv.as_mut() {
                let name = serde_json::to_string(&way)?;
                let name = name.trim_matches('"');
                for (n, guest) in world.guests().iter().enumerate() {
                    let (share, hits) = (seen.shares[n], seen.hits_by_guest[n]);
                    let used = (guest.used() * PAGE) as u64;
                    writeln!(csv, "{name},{second},{n},{share},{used},{hits:.1}")?;
                }
            }
        }
        course.last = seen.shares;
    }
    let last = measure::mean(&hits[hits.len() * 3 / 4..]);
    course.converged = measure::converged(&hits, last, 0.05);
    let least = scenario.capacity as f64 / scenario.guests.len() as f64 / 32.0;
    let turns = later
        .iter()
        .map(|shares| measure::turns(shares, least) as f64);
    course.turns = measure::mean(&turns.collect::<Vec<_>>());
    Ok(course)
}
