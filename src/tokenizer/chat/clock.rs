//! `strftime_now`: the date for templates that tell the model what day it is. C's `strftime` conversions in the C locale, with glibc's
//! `-` (no padding). Calendar arithmetic after [Hinnant](https://howardhinnant.github.io/date_algorithms.html#civil_from_days).

use minijinja::{Error, ErrorKind};
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Seconds since 1970, UTC.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    i64::try_from(since).unwrap_or(0)
}

/// Year, month 1..12, day 1..31 of a day counted from 1970-01-01.
fn civil(days: i64) -> (i64, usize, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month as usize, doy - (153 * mp + 2) / 5 + 1)
}

/// Formats a moment.
pub fn strftime(format: &str, seconds: i64) -> Result<String, Error> {
    // Years 0 to 9999 are what calendars promise.
    let seconds = seconds.clamp(-62_167_219_200, 253_402_300_799);
    let (days, second_of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let day_of_year = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month - 1] + day + i64::from(leap && month > 2);
    let weekday = (days + 4).rem_euclid(7);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[weekday as usize]);
    let hour12 = (hour + 11) % 12 + 1;

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut letter = chars.next();
        let padded = letter != Some('-');
        if !padded {
            letter = chars.next();
        }
        // (value, width, padding)
        let number = match letter {
            Some('d') => (day, 2, '0'),
            Some('e') => (day, 2, ' '),
            Some('m') => (month as i64, 2, '0'),
            Some('Y') => (year, 0, '0'),
            Some('y') => (year % 100, 2, '0'),
            Some('C') => (year / 100, 2, '0'),
            Some('H') => (hour, 2, '0'),
            Some('k') => (hour, 2, ' '),
            Some('I') => (hour12, 2, '0'),
            Some('l') => (hour12, 2, ' '),
            Some('M') => (minute, 2, '0'),
            Some('S') => (second, 2, '0'),
            Some('f') => (0, 6, '0'),
            Some('j') => (day_of_year, 3, '0'),
            Some('w') => (weekday, 0, '0'),
            Some('u') => ((weekday + 6) % 7 + 1, 0, '0'),
            Some('U') => ((day_of_year - 1 + 7 - weekday) / 7, 2, '0'),
            Some('W') => ((day_of_year - 1 + 7 - (weekday + 6) % 7) / 7, 2, '0'),
            Some('s') => (seconds, 0, '0'),
            _ => {
                let nested = match letter {
                    Some('B') => month_name.to_owned(),
                    Some('b' | 'h') => month_name[..3].to_owned(),
                    Some('A') => day_name.to_owned(),
                    Some('a') => day_name[..3].to_owned(),
                    Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
                    Some('F') => strftime("%Y-%m-%d", seconds)?,
                    Some('T' | 'X') => strftime("%H:%M:%S", seconds)?,
                    Some('R') => strftime("%H:%M", seconds)?,
                    Some('D' | 'x') => strftime("%m/%d/%y", seconds)?,
                    Some('c') => strftime("%a %b %e %H:%M:%S %Y", seconds)?,
                    Some('r') => strftime("%I:%M:%S %p", seconds)?,
                    Some('n') => "\n".to_owned(),
                    Some('t') => "\t".to_owned(),
                    Some('%') => "%".to_owned(),
                    // A moment without a time zone: nothing, as Python has it.
                    Some('z' | 'Z') => String::new(),
                    other => {
                        let what = other.map_or("a lone %".to_owned(), |c| format!("%{c}"));
                        return Err(Error::new(ErrorKind::InvalidOperation, format!("strftime_now: unknown conversion {what}")));
                    }
                };
                out.push_str(&nested);
                continue;
            }
        };
        let (value, width, padding) = number;
        let digits = value.to_string();
        for _ in digits.len()..if padded { width } else { 0 } {
            out.push(padding);
        }
        // Writing to a String does not fail.
        let _ = out.write_str(&digits);
    }
    Ok(out)
}
