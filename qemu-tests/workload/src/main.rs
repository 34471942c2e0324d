// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command that runs in the guest; see the library for what it does.
//!
//! Prints one JSON object a line. Exits with 0 if all was right, with 1 if something was wrong
//! with the content, and with 2 if the work itself failed.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{bail, Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::{json, to_value};

use tmem_workload::{
    anon::Anon,
    cases::{Case, CASES},
    corpus::Corpus,
    file_set::FileSet,
    mixer::Mixer,
    order::Order,
    page::PAGE_SIZE,
    phase::{copy, file::Files, swap::Swap, Phases},
    sys::{run_on, run_when_idle},
};

const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_SIZE as u64;

/// Fills memory and files so that every wrong page is noticed.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write and verify anonymous memory.
    Anon {
        /// The memory of all jobs together.
        #[arg(long)]
        mib: u64,
        /// Times that a third is written again and everything verified.
        #[arg(long, default_value_t = 1)]
        passes: u32,
        /// Threads, each with memory of its own.
        #[arg(long, default_value_t = 1)]
        jobs: u32,
        /// What the content depends on.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Ask for huge pages.
        #[arg(long)]
        huge: bool,
        /// Once everything is written, say so and wait until this file exists.
        #[arg(long)]
        wait_for: Option<PathBuf>,
        /// Run on this CPU only.
        #[arg(long)]
        cpu: Option<usize>,
        /// Run only when nobody else wants the CPU.
        #[arg(long)]
        idle: bool,
    },
    /// Create, verify or read a set of files.
    FileSet {
        /// What to do with them.
        action: Action,
        #[command(flatten)]
        set: SetArgs,
    },
    /// Read pieces of a set of files in a random order.
    RandomRead {
        #[command(flatten)]
        set: SetArgs,
        /// How many pieces to read.
        #[arg(long)]
        reads: u64,
        /// How many pages a piece has.
        #[arg(long, default_value_t = 1)]
        pages: u64,
        /// Read popular pieces again, by Zipf's law with this exponent, and not each once.
        #[arg(long)]
        zipf: Option<f64>,
        /// What the order depends on.
        #[arg(long, default_value_t = 1)]
        order_seed: u64,
    },
    /// Do random things to files and read them back.
    Coherency {
        /// The folder.
        #[arg(long)]
        dir: PathBuf,
        /// Operations for each thread.
        #[arg(long, default_value_t = 1000)]
        ops: u64,
        /// The time after which no operation begins.
        #[arg(long, default_value_t = 3600)]
        seconds: u64,
        /// No operation begins once this file exists.
        #[arg(long)]
        until: Option<PathBuf>,
        /// What decides on the operations.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Threads that change files.
        #[arg(long, default_value_t = 2)]
        threads: u8,
        /// Threads that only read and evict.
        #[arg(long, default_value_t = 1)]
        racers: u8,
        /// The length of a file, at most.
        #[arg(long, default_value_t = 1024)]
        file_kib: usize,
        /// Never write past the page cache.
        #[arg(long)]
        no_direct: bool,
    },
    /// Do one thing that makes pages kept elsewhere stale, and read them back.
    CoherencyCase {
        /// The thing; without it, the names of all are printed.
        name: Option<String>,
        /// The folder.
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// Put old content back behind the case's back, so that it has to fail.
        #[arg(long)]
        inject_stale: bool,
    },
    /// Do one thing after the other to each of many pages, to be measured.
    Phases {
        /// What is measured.
        what: What,
        /// Mebibytes of pages.
        #[arg(long, default_value_t = 16)]
        mib: u64,
        /// What the names of phases begin with.
        #[arg(long, default_value = "")]
        label: String,
        /// The file.
        #[arg(long, default_value = "pages")]
        file: PathBuf,
        /// Files that content is taken from.
        corpus: Vec<PathBuf>,
    },
}

/// A set of files.
#[derive(Args)]
struct SetArgs {
    /// The folder.
    #[arg(long)]
    dir: PathBuf,
    /// The size of all of them together.
    #[arg(long)]
    mib: u64,
    /// How many they are.
    #[arg(long, default_value_t = 8)]
    files: u32,
    /// What the content depends on.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Which writing of them is meant.
    #[arg(long, default_value_t = 1)]
    generation: u32,
}

impl From<SetArgs> for FileSet {
    fn from(args: SetArgs) -> Self {
        Self {
            dir: args.dir,
            files: args.files.max(1),
            pages: args.mib * PAGES_PER_MIB,
            seed: args.seed,
            generation: args.generation,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Action {
    Create,
    Verify,
    Read,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("tmem-workload: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Anonymous memory.
    Swap,
    /// Nothing: only write the file.
    Create,
    /// The file.
    File,
    /// Only copies of pages.
    Copy,
}

/// Runs the command and returns how much was wrong.
fn run(command: Command) -> Result<u64> {
    match command {
        Command::Anon {
            mib,
            passes,
            jobs,
            seed,
            huge,
            wait_for,
            cpu,
            idle,
        } => {
            if let Some(cpu) = cpu {
                run_on(&[cpu])?;
            }
            if idle {
                run_when_idle()?;
            }
            let anon = Anon {
                pages: mib * PAGES_PER_MIB,
                passes,
                jobs: jobs.max(1),
                seed,
                huge,
                wait_for,
            };
            let outcome = anon.run(&|| println!("{}", json!({"event": "filled"})))?;
            print("anon", &outcome, outcome.findings.wrong)
        }
        Command::FileSet { action, set } => {
            let set = FileSet::from(set);
            match action {
                Action::Create => {
                    set.create()?;
                    print("file-set create", &json!({ "pages": set.pages }), 0)
                }
                Action::Verify => {
                    let verified = set.verify()?;
                    print("file-set verify", &verified, verified.findings.wrong)
                }
                Action::Read => {
                    let start = Instant::now();
                    set.read()?;
                    let seconds = start.elapsed().as_secs_f64();
                    let outcome = json!({ "pages": set.pages, "seconds": seconds });
                    print("file-set read", &outcome, 0)
                }
            }
        }
        Command::RandomRead {
            set,
            reads,
            pages,
            zipf,
            order_seed,
        } => {
            let set = FileSet::from(set);
            let order = zipf.map_or(Order::Once, Order::Zipf);
            let pieces = order.pieces(set.pages / pages.max(1), reads, order_seed)?;
            let start = Instant::now();
            set.read_pieces(&pieces, pages.max(1))?;
            let seconds = start.elapsed().as_secs_f64();
            let outcome = json!({ "reads": reads, "seconds": seconds });
            print("random-read", &outcome, 0)
        }
        Command::Coherency {
            dir,
            ops,
            seconds,
            until,
            seed,
            threads,
            racers,
            file_kib,
            no_direct,
        } => {
            let mixer = Mixer {
                dir,
                seed,
                ops,
                limit: Duration::from_secs(seconds),
                until,
                threads,
                racers,
                max_len: file_kib << 10,
                direct: !no_direct,
            };
            let outcome = mixer.run(&|_| {})?;
            print("coherency", &outcome, outcome.findings.wrong)
        }
        Command::CoherencyCase {
            name: None,
            dir: _,
            inject_stale: _,
        } => {
            CASES.iter().for_each(|case| println!("{}", case.name));
            Ok(0)
        }
        Command::CoherencyCase {
            name: Some(name),
            dir,
            inject_stale,
        } => {
            let Some(case) = Case::named(&name) else {
                bail!("there is no case {name:?}");
            };
            let outcome = case.run(&dir, inject_stale).context(name)?;
            print("coherency-case", &outcome, outcome.findings.wrong)
        }
        Command::Phases {
            what,
            mib,
            label,
            file,
            corpus,
        } => {
            let pages = mib * PAGES_PER_MIB;
            let phases = Phases::new(&label);
            let files = Files { path: file, pages };
            match what {
                What::Swap => {
                    let corpus = Corpus::open(&corpus)?;
                    Swap { pages, corpus }.run(&phases)?;
                }
                What::Create => files.create(&Corpus::open(&corpus)?)?,
                What::File => files.run(&phases)?,
                What::Copy => copy::run(&phases, pages)?,
            }
            Ok(0)
        }
    }
}

/// Prints `outcome` as one line of JSON that also says what it is the outcome of.
fn print(of: &str, outcome: &impl Serialize, wrong: u64) -> Result<u64> {
    let mut value = to_value(outcome)?;
    value["of"] = of.into();
    println!("{value}");
    Ok(wrong)
}
