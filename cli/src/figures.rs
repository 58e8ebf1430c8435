//! Writes numbers as people read them.

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
pub(crate) fn counted(number: u32, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// A share, 0 to 1, in percent.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// Bytes in the decimal unit that leaves one to three digits before the point.
pub(crate) fn bytes(count: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut count, mut unit) = (count, 0);
    while count >= 999.5 && unit + 1 < units.len() {
        count /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count:.0} B"),
        _ => format!("{count:.1} {}", units[unit]),
    }
}

/// A length of time, coarser the longer it is.
pub(crate) fn time(seconds: f64) -> String {
    let whole = seconds.clamp(0.0, 1e12).round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A moment in microseconds since 1970, as a date and time in UTC.
///
/// The days are counted in eras of 400 years that begin with March, so that a leap day is the last of its year (Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms").
pub(crate) fn moment(us: u64) -> String {
    let seconds = us / 1_000_000;
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        second / 3600,
        second % 3600 / 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        // As `date --utc --date=@SECONDS` writes them.
        for (seconds, right) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (1_740_787_200, "2025-03-01 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(moment(seconds * 1_000_000 + 999_999), right);
        }
        assert!(moment(u64::MAX).ends_with("UTC"));
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(percent(0.975), "97.50 %");
        assert_eq!([0, 1, 2].map(|n| counted(n, "server")), ["0 servers", "1 server", "2 servers"]);
        assert_eq!(
            [0.0, 999.0, 1000.0, 2.5e6, 7e9].map(bytes),
            ["0 B", "999 B", "1.0 kB", "2.5 MB", "7.0 GB"]
        );
        assert_eq!(
            [0.4, 59.4, 59.6, 3600.0, 9000.0].map(time),
            ["0 s", "59 s", "1 min 00 s", "1 h 00 min", "2 h 30 min"]
        );
        assert_eq!(time(f64::INFINITY), time(1e12));
        assert_eq!(time(f64::NAN), "0 s");
    }
}
