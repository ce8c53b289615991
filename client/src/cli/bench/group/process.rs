//! What processes spend.

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
    fn this_process_can_be_read() {
        assert!(cpu_time(std::process::id()).is_ok());
    }
}
