// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Numbers of bytes, as people write and read them.

use std::fmt;

/// Units above the byte, each 1024 times the one before.
const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];

/// Digits of a fraction that are looked at; more would be less than a byte.
const MAX_FRACTION: usize = 13;

/// Reads a number of bytes with a unit: none or B, K, M, G, T (also as KiB, KB, …, all of them
/// powers of 1024), in either case. The number may have a fraction, of which whole bytes count.
/// Returns nothing for what is no such number, or does not fit.
pub fn parse(size: &str) -> Option<u64> {
    let end = size.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = size.split_at(end.unwrap_or(size.len()));
    let unit = unit.trim_start().to_ascii_uppercase();
    let shift = match unit.as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return None,
    };
    let (whole, fraction) = match number.split_once('.') {
        // There are no parts of a byte.
        Some(_) if shift == 0 => return None,
        Some((_, fraction)) if fraction.is_empty() || fraction.len() > MAX_FRACTION => return None,
        Some(parts) => parts,
        None => (number, "0"),
    };
    let whole = whole.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    let denominator = 10u128.pow(fraction.len() as u32);
    let fraction = (u128::from(fraction.parse::<u64>().ok()?) << shift) / denominator;
    // Less than the unit.
    whole.checked_add(fraction as u64)
}

/// A number of bytes, shown in the largest unit of which there is one, with three digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = "B";
        for next in UNITS {
            // What would be shown as 1024 is one of the next.
            if value < 1023.5 {
                break;
            }
            value /= 1024.0;
            unit = next;
        }
        let digits = match value {
            _ if unit == "B" => 0,
            value if value < 9.995 => 2,
            value if value < 99.95 => 1,
            _ => 0,
        };
        f.pad(&format!("{value:.digits$} {unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let sizes = [
            ("1048576", 1 << 20),
            ("7B", 7),
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("4G", 4 << 30),
            ("3kb", 3 << 10),
            ("1TiB", 1 << 40),
            ("1.5GiB", 3 << 29),
            ("0.25 m", 1 << 18),
            ("2.0K", 2048),
            ("0.1G", 107_374_182),
            ("15.999999999999T", 17_592_186_044_414),
        ];
        for (text, size) in sizes {
            assert_eq!(parse(text), Some(size), "{text}");
        }
        let bad = [
            "",
            "MiB",
            "-1G",
            "1.5",
            "1.5B",
            "1.G",
            ".5G",
            "1..5G",
            "1.5.5G",
            "1,5G",
            "1.+5G",
            "4Gib/s",
            "0x10",
            "99999999999999999999",
            "16777216T",
            "16777215.99999999999999T",
        ];
        for text in bad {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn bytes_are_shown_with_three_digits() {
        let shown = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10 << 10, "10.0 KiB"),
            (1023 << 10, "1023 KiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (3 << 29, "1.50 GiB"),
            (123 << 40, "123 TiB"),
            (u64::MAX, "16777216 TiB"),
        ];
        for (bytes, text) in shown {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>9}", Bytes(1024)), " 1.00 KiB");
    }
}
