//! What processes spend.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::Context;

/// Linux counts processor time for user space in hundredths of a second, whatever the kernel's own tick.
const TICK: Duration = Duration::from_millis(10);

/// Processor time that a process has used since it began, all threads together.
pub(super) fn cpu_time(process: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    ticks(&stat).map(|ticks| TICK * ticks).with_context(|| format!("{path} is not understood"))
}

/// The same of several processes, by their ids.
pub(super) fn cpu_times(processes: &[u32]) -> anyhow::Result<BTreeMap<u32, Duration>> {
    processes.iter().map(|&process| Ok((process, cpu_time(process)?))).collect()
}

/// What several processes spend while something is measured.
pub(super) struct CpuMeter {
    before: BTreeMap<u32, Duration>,
}

impl CpuMeter {
    /// Begins. Of no processes nothing is measured.
    pub(super) fn begin(processes: &[u32]) -> anyhow::Result<Self> {
        Ok(Self { before: cpu_times(processes)? })
    }

    /// What each has spent since, in hundredths of one core, of a time that took so long.
    pub(super) fn percent_each(&self, took: Duration) -> anyhow::Result<BTreeMap<u32, f64>> {
        let percent = |(&process, &before): (&u32, &Duration)| {
            let spent = cpu_time(process)?.saturating_sub(before);
            Ok((process, spent.as_secs_f64() / took.as_secs_f64() * 100.0))
        };
        self.before.iter().map(percent).collect()
    }
}

/// Bytes of memory that a process has in use (its resident set).
pub(super) fn resident_bytes(process: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{process}/status");
    let status = fs::read_to_string(&path).with_context(|| path.clone())?;
    resident(&status).with_context(|| format!("{path} is not understood"))
}

/// The line `VmRSS:   1234 kB`.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1_024)
}

/// User and system time: the 14th and 15th field. The second one is a name that may hold anything, in parentheses.
fn ticks(stat: &str) -> Option<u32> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_after_the_name() {
        let stat = "17 (a (b) c) S 1 17 17 0 -1 4194560 2094 0 3 0 250 31 0 0 20 0 7 0 99 1 2";
        assert_eq!(ticks(stat), Some(281));
        assert_eq!(ticks("17 (a) S 1"), None);
    }

    #[test]
    fn memory_is_counted_in_bytes() {
        assert_eq!(resident("Name:\ta\nVmRSS:\t    1234 kB\nThreads:\t1\n"), Some(1234 << 10));
        assert_eq!(resident("Name:\ta\n"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        assert!(cpu_time(std::process::id()).is_ok());
        assert!(resident_bytes(std::process::id()).is_ok_and(|bytes| bytes > 0));
    }
}
