//! Writes numbers as people read them.

use crate::statistics::Mean;

/// What a number counts, which decides how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Count,
    Bytes,
    /// A share, 0 to 1, written in percent.
    Share,
    Plain,
}

/// A mean with its interval, such as `12.3 ± 0.4 s`.
pub(crate) fn measured(unit: Unit, mean: Option<Mean>) -> String {
    let Some(Mean { value, half_width, .. }) = mean else { return "–".to_owned() };
    let (divisor, suffix) = match unit {
        Unit::Seconds => (1.0, " s"),
        Unit::Count | Unit::Plain => (1.0, ""),
        Unit::Bytes => byte_unit(value),
        Unit::Share => (0.01, " %"),
    };
    let (value, half_width) = (value / divisor, half_width.map(|half| half / divisor));
    let decimals = match unit {
        Unit::Count if value.abs() >= 100.0 || value.fract() == 0.0 => 0,
        Unit::Share | Unit::Plain => 2,
        _ if value.abs() >= 99.95 => 0,
        _ if value.abs() >= 9.995 => 1,
        _ => 2,
    };
    let written = |number: f64| grouped_decimal(number, decimals);
    match half_width {
        // Equal values have no spread, not a small one.
        Some(half) if half <= 1e-12 * value.abs() => format!("{} ± 0{suffix}", written(value)),
        Some(half) => format!("{} ± {}{suffix}", written(value), written(half)),
        None => format!("{}{suffix}", written(value)),
    }
}

/// A single value in its unit.
pub(crate) fn single(unit: Unit, value: f64) -> String {
    measured(unit, value.is_finite().then_some(Mean { value, half_width: None, runs: 1 }))
}

/// A share that was set and not measured, in percent without digits that say nothing.
pub(crate) fn level(share: f64) -> String {
    format!("{} %", short(share * 100.0))
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things, such as `1 server` or `2 servers`.
pub(crate) fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(number))
}

/// A rate or another number as short as it goes, to five digits.
pub(crate) fn short(number: f64) -> String {
    if !number.is_finite() {
        return "–".to_owned();
    }
    if number == 0.0 {
        return "0".to_owned();
    }
    let decimals = (4 - number.abs().log10().floor() as i32).clamp(0, 12) as usize;
    trimmed(&format!("{number:.decimals$}"))
}

/// A tick of an axis of counts: `0`, `500`, `20 k`, `1.5 M`.
pub(crate) fn count_tick(value: f64) -> String {
    match value.abs() {
        size if size >= 1e9 => format!("{} G", short(value / 1e9)),
        size if size >= 1e6 => format!("{} M", short(value / 1e6)),
        size if size >= 1e4 => format!("{} k", short(value / 1e3)),
        _ => short(value),
    }
}

/// A tick of an axis of bytes: `200 kB`, `1 GB`.
pub(crate) fn byte_tick(value: f64) -> String {
    let (divisor, suffix) = byte_unit(value);
    format!("{}{suffix}", short(value / divisor))
}

fn byte_unit(value: f64) -> (f64, &'static str) {
    match value.abs() {
        size if size >= 999.5e9 => (1e12, " TB"),
        size if size >= 999.5e6 => (1e9, " GB"),
        size if size >= 999.5e3 => (1e6, " MB"),
        size if size >= 999.5 => (1e3, " kB"),
        _ => (1.0, " B"),
    }
}

fn grouped_decimal(number: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", number.abs());
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let whole = whole.parse().map_or_else(|_| whole.to_owned(), grouped);
    let sign = if number < 0.0 { "−" } else { "" };
    match fraction {
        "" => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{fraction}"),
    }
}

fn trimmed(text: &str) -> String {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let mean = |value, half_width| Some(Mean { value, half_width, runs: 3 });
        assert_eq!(measured(Unit::Seconds, mean(12.345, Some(0.44))), "12.3 ± 0.4 s");
        assert_eq!(measured(Unit::Seconds, mean(0.5, None)), "0.50 s");
        assert_eq!(measured(Unit::Count, mean(48_000.4, Some(1_200.0))), "48,000 ± 1,200");
        assert_eq!(measured(Unit::Count, mean(12.5, None)), "12.5");
        assert_eq!(measured(Unit::Bytes, mean(1.234e9, Some(4e7))), "1.23 ± 0.04 GB");
        assert_eq!(measured(Unit::Share, mean(0.97712, Some(0.0005))), "97.71 ± 0.05 %");
        assert_eq!(measured(Unit::Plain, mean(2.0, Some(0.0))), "2.00 ± 0");
        assert_eq!((level(0.97), level(0.9725)), ("97 %".into(), "97.25 %".into()));
        assert_eq!((measured(Unit::Plain, None), single(Unit::Plain, f64::NAN)), ("–".into(), "–".into()));
        assert_eq!(
            [0.1, 0.000_316_23, 100.0, 0.0, 12_345_678.0].map(short),
            ["0.1", "0.00031623", "100", "0", "12345678"]
        );
        assert_eq!([0.0, 5e3, 2e4, 1.5e6].map(count_tick), ["0", "5000", "20 k", "1.5 M"]);
        assert_eq!([500.0, 2e5, 1e9].map(byte_tick), ["500 B", "200 kB", "1 GB"]);
        assert_eq!([1, 1200].map(|n| counted(n, "run")), ["1 run", "1,200 runs"]);
    }
}
