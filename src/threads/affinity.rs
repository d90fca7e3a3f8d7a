//! The cores worth computing on: those that this process may use, without the little ones, siblings counted once.
//!
//! Reference: `Cpus_allowed_list` of proc(5); `online`, `cpuN/cpu_capacity`, `cpuN/cpufreq/cpuinfo_max_freq` and
//! `cpuN/topology/thread_siblings_list` of Linux's sysfs-devices-system-cpu. What a system does not tell is taken to be equal.
//! Little cores are left out because every loop of a pass ends with its slowest chunk; two threads on one core are not used
//! because they share the units and the memory paths that matrix products keep busy.

use std::collections::BTreeSet;
use std::path::Path;

/// Most CPUs that are looked at.
const CPUS_MAX: u64 = 4096;
/// A core is big from this share of the largest capacity on: the second of three kinds has 60 % and more, little ones at most 40 %.
const BIG_CAPACITY: f64 = 0.5;
/// The same by clock, where the capacity is not told: clocks differ less than what is done in a cycle.
const BIG_CLOCK: f64 = 0.75;

/// How many big cores this thread may run on; None where the system does not say.
pub(super) fn big_cores() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    big_cores_of(allowed, Path::new("/sys/devices/system/cpu"))
}

/// How many big cores there are among the CPUs `allowed` (as `0-3,8`), by what the directory `cpus` says of them.
fn big_cores_of(allowed: &str, cpus: &Path) -> Option<usize> {
    let allowed = list(allowed)?;
    // The mask may name CPUs that this machine does not have.
    let allowed = match text(&cpus.join("online")).and_then(|online| list(&online)) {
        Some(online) => &allowed & &online,
        None => allowed,
    };
    let number = |cpu: &usize, file: &str| text(&cpus.join(format!("cpu{cpu}/{file}")))?.parse::<f64>().ok();
    let measure = |file: &str| allowed.iter().map(|cpu| number(cpu, file)).collect::<Option<Vec<f64>>>();
    let (speeds, share) = match measure("cpu_capacity") {
        Some(capacities) => (capacities, BIG_CAPACITY),
        None => (measure("cpufreq/cpuinfo_max_freq").unwrap_or_else(|| vec![1.0; allowed.len()]), BIG_CLOCK),
    };
    let most = speeds.iter().copied().fold(0.0, f64::max);
    let big = allowed.iter().zip(speeds).filter(|(_, speed)| *speed >= share * most).map(|(cpu, _)| *cpu);
    // A core goes by the first of its CPUs that may be used.
    let core = |cpu: usize| {
        let siblings = text(&cpus.join(format!("cpu{cpu}/topology/thread_siblings_list"))).and_then(|s| list(&s));
        siblings.and_then(|s| s.intersection(&allowed).next().copied()).unwrap_or(cpu)
    };
    let cores: BTreeSet<usize> = big.map(core).collect();
    (!cores.is_empty()).then_some(cores.len())
}

fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|s| s.trim().to_string())
}

/// The numbers of a list like `0-3,8`; None if it is not one.
fn list(text: &str) -> Option<BTreeSet<usize>> {
    let mut cpus = BTreeSet::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        cpus.extend((first..=last).take_while(|cpu| *cpu < CPUS_MAX).map(|cpu| cpu as usize));
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine's `/sys/devices/system/cpu`: for each CPU the files that it has.
    fn machine(cpus: &[&[(&str, &str)]]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("online"), format!("0-{}\n", cpus.len() - 1)).unwrap();
        for (i, files) in cpus.iter().enumerate() {
            for (name, text) in *files {
                let path = dir.path().join(format!("cpu{i}")).join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, format!("{text}\n")).unwrap();
            }
        }
        dir
    }

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        let set = |cpus: &[usize]| Some(cpus.iter().copied().collect::<BTreeSet<_>>());
        assert_eq!(list("0-2,5\n"), set(&[0, 1, 2, 5]));
        assert_eq!(list("7"), set(&[7]));
        assert_eq!((list(""), list("a-b"), list("0x3")), (None, None, None));
        assert_eq!(list("0-18446744073709551615").map(|s| s.len()), Some(CPUS_MAX as usize));
    }

    #[test]
    fn equal_cores_count_unless_they_are_not_allowed_or_not_there() {
        let dir = machine(&[&[], &[], &[], &[]]);
        assert_eq!(big_cores_of("0-3", dir.path()), Some(4));
        assert_eq!(big_cores_of("0-127", dir.path()), Some(4));
        assert_eq!(big_cores_of("1,3", dir.path()), Some(2));
        assert_eq!(big_cores_of("64", dir.path()), None);
        assert_eq!(big_cores_of("0,2", Path::new("/nowhere")), Some(2));
    }

    #[test]
    fn little_cores_are_left_out_unless_there_is_nothing_else() {
        let capacity = |c: &'static str| [("cpu_capacity", c)];
        let (little, middle, prime) = (capacity("250"), capacity("760"), capacity("1024"));
        let dir = machine(&[&little, &little, &little, &little, &middle, &middle, &middle, &prime]);
        assert_eq!(big_cores_of("0-7", dir.path()), Some(4));
        assert_eq!(big_cores_of("0-5", dir.path()), Some(2));
        assert_eq!(big_cores_of("0-3", dir.path()), Some(4));
        let clock = |c: &'static str| [("cpufreq/cpuinfo_max_freq", c)];
        let (little, big, prime) = (clock("1804800"), clock("2419200"), clock("2841600"));
        let dir = machine(&[&little, &little, &big, &big, &prime]);
        assert_eq!(big_cores_of("0-4", dir.path()), Some(3));
    }

    #[test]
    fn siblings_are_one_core() {
        let pair = |s: &'static str| [("topology/thread_siblings_list", s), ("cpufreq/cpuinfo_max_freq", "3000000")];
        let (a, b) = (pair("0,2"), pair("1,3"));
        let dir = machine(&[&a, &b, &a, &b]);
        assert_eq!(big_cores_of("0-3", dir.path()), Some(2));
        assert_eq!(big_cores_of("2-3", dir.path()), Some(2));
        assert_eq!(big_cores_of("0,2", dir.path()), Some(1));
    }
}
