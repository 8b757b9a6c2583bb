//! Load by other programs: where they take the processors, calls come late and nobody here
//! is to blame. Such times are written down like faults, and what is judged by the clock is not
//! held against the nodes then. Nothing else is excused.

use std::fs;

/// The share of all processors that others may take, in percent, before the machine counts as busy.
const OTHERS: u64 = 35;

/// Looks again and again at who used the processors.
#[derive(Default)]
pub(crate) struct LoadWatcher {
    before: Option<Ticks>,
}

/// Time used since the machine, or the process, began; in ticks of the kernel.
#[derive(Clone, Copy)]
struct Ticks {
    all: u64,
    used: u64,
    ours: u64,
}

impl LoadWatcher {
    /// True if other programs took too much since the last call.
    pub(crate) fn is_bad(&mut self) -> bool {
        let now = Ticks::now();
        let Some(before) = self.before.replace(now) else { return false };
        let all = now.all - before.all;
        let others = (now.used - before.used).saturating_sub(now.ours.saturating_sub(before.ours));
        others * 100 > all * OTHERS
    }
}

impl Ticks {
    fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap();
        let fields: Vec<u64> = numbers(stat.lines().next().unwrap());
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is in user already.
        let all: u64 = fields.iter().take(8).sum();
        Self { all, used: all - fields[3] - fields[4], ours: ours() }
    }
}

/// This process, all that it started, and what those have used that are gone.
fn ours() -> u64 {
    let mut processes: Vec<(u32, u32, u64)> = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may be gone by now.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        // state, ppid, … and from the 12th on utime, stime, cutime, cstime.
        let fields = numbers(rest);
        let parent = u32::try_from(fields[0]).unwrap();
        processes.push((pid, parent, fields[10..14].iter().sum()));
    }
    let (mut family, mut used) = (vec![std::process::id()], 0);
    while let Some(one) = family.pop() {
        for &(pid, parent, ticks) in &processes {
            used += if pid == one { ticks } else { 0 };
            if parent == one {
                family.push(pid);
            }
        }
    }
    used
}

fn numbers(line: &str) -> Vec<u64> {
    line.split_whitespace().filter_map(|word| word.trim_start_matches('-').parse().ok()).collect()
}

/// A machine on which only this runs is ours; what others use is not.
#[test]
fn what_is_used_here_is_ours() {
    let before = Ticks::now();
    let mut work = 0_u64;
    while Ticks::now().ours < before.ours + 50 {
        work = std::hint::black_box(work.wrapping_mul(3).wrapping_add(1));
    }
    let after = Ticks::now();
    let (ours, used) = (after.ours - before.ours, after.used - before.used);
    // What is used at all is sampled, not measured.
    assert!(ours <= used * 5 / 4 + 5, "{ours} of {used} is ours");
    assert!(after.all > before.all);
}
