// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages as guests have them.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use vhost_device_tmem::store::{PageBytes, PAGE_SIZE};

/// The most pages of one kind: more than the processor's caches hold.
const PAGES: usize = 20_000;

/// Pages of one kind.
pub(crate) struct Pages {
    pub(crate) name: &'static str,
    pub(crate) pages: Vec<PageBytes>,
}

/// Returns pages of all kinds that this machine has.
pub(crate) fn all() -> Vec<Pages> {
    let kinds = [
        ("executables", executables()),
        ("text", text()),
        ("heap", heap()),
        ("random", random()),
        ("zeros", vec![[0; PAGE_SIZE]; PAGES]),
    ];
    let some = kinds.into_iter().filter(|(_, pages)| !pages.is_empty());
    some.map(|(name, pages)| Pages { name, pages }).collect()
}

fn executables() -> Vec<PageBytes> {
    let mut files = Vec::new();
    for folder in ["/usr/bin", "/usr/sbin", "/usr/lib/x86_64-linux-gnu"] {
        files_in(Path::new(folder), 1, &mut files);
    }
    // Not what compilers left of programs, nor scripts.
    let elf = |bytes: &[u8]| bytes.starts_with(b"\x7fELF");
    sample(&files, elf)
}

fn text() -> Vec<PageBytes> {
    let mut files = Vec::new();
    for folder in ["/usr/include", "/usr/lib/python3", "/usr/lib/python3.13"] {
        files_in(Path::new(folder), 6, &mut files);
    }
    let extensions = ["h", "py", "txt"].map(OsStr::new);
    files.retain(|path| path.extension().is_some_and(|e| extensions.contains(&e)));
    sample(&files, |_| true)
}

/// Returns all whole pages of some files, of all in the same measure.
fn sample(files: &[PathBuf], wanted: impl Fn(&[u8]) -> bool) -> Vec<PageBytes> {
    let mut pages = Vec::new();
    for path in files {
        let Ok(bytes) = fs::read(path) else { continue };
        if wanted(&bytes) {
            let whole = bytes.chunks_exact(PAGE_SIZE);
            pages.extend(whole.map(|page| PageBytes::try_from(page).unwrap()));
        }
    }
    thin_out(pages)
}

/// Leaves out as many as there are too many, evenly.
fn thin_out(pages: Vec<PageBytes>) -> Vec<PageBytes> {
    let every = pages.len().div_ceil(PAGES).max(1);
    pages.into_iter().step_by(every).collect()
}

fn files_in(folder: &Path, depth: u32, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Ok(kind) = fs::symlink_metadata(&path) else {
            continue;
        };
        if kind.is_file() {
            files.push(path);
        } else if kind.is_dir() && depth > 1 {
            files_in(&path, depth - 1, files);
        }
    }
}

/// A program with much on its heap.
const PROGRAM: &str = "
import ast, collections, glob, os
kept = []
for name in sorted(glob.glob(os.path.dirname(os.__file__) + '/*.py'))[:150]:
    text = open(name, errors='replace').read()
    kept.append((name, text, ast.parse(text), collections.Counter(text.split())))
print('ready', flush=True)
input()
";

/// Returns pages of the memory of a process that are not of a file.
fn heap() -> Vec<PageBytes> {
    let child = Command::new("python3")
        .args(["-c", PROGRAM])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    child.map_or_else(|_| Vec::new(), |child| heap_of(child).unwrap_or_default())
}

fn heap_of(mut child: Child) -> Option<Vec<PageBytes>> {
    let mut ready = String::new();
    BufReader::new(child.stdout.take()?)
        .read_line(&mut ready)
        .ok()?;
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let maps = fs::read_to_string(proc.join("maps")).ok()?;
    let memory = fs::File::open(proc.join("mem")).ok()?;
    let mut pages = Vec::new();
    for line in maps.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let anonymous = fields.get(5).is_none_or(|name| *name == "[heap]");
        if !anonymous || !fields.get(1)?.starts_with("rw") {
            continue;
        }
        let (start, end) = fields[0].split_once('-')?;
        let number = |hex| u64::from_str_radix(hex, 16).ok();
        for at in (number(start)?..number(end)?).step_by(PAGE_SIZE) {
            let mut page = [0; PAGE_SIZE];
            if memory.read_exact_at(&mut page, at).is_ok() {
                pages.push(page);
            }
        }
    }
    drop(child.stdin.take());
    child.wait().ok()?;
    Some(thin_out(pages))
}

fn random() -> Vec<PageBytes> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut word = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut page = move || {
        let mut page = [0; PAGE_SIZE];
        for bytes in page.chunks_exact_mut(8) {
            bytes.copy_from_slice(&word());
        }
        page
    };
    (0..PAGES).map(|_| page()).collect()
}
