// SPDX-License-Identifier: MPL-2.0

//! Which frames are shown beside each other.

/// Containers round times: Matroska to a millisecond.
const ROUNDING: u64 = 1_000_000;

/// A frame of A and the frame of B at its time, where B has one; both by their number in the part
/// that is read.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    pub a: usize,
    pub b: Option<usize>,
}

/// What is shown of two files.
pub struct Matching {
    pub pairs: Vec<Pair>,
    /// Frames of A in the time that both files have.
    pub common: usize,
    /// Those of them at whose time B has no frame, and the frames of B at whose time A has none.
    pub lacking: usize,
    pub surplus: usize,
    /// The time in ns by which A goes on after the end of B, or B after that of A.
    pub a_rest: u64,
    pub b_rest: u64,
}

/// Matches frames at the times `a` and `b`, in ns from each file's first, and chooses at most `count`
/// pairs: all frames of A where they are so few, or else some that both files have, evenly spread.
pub fn matching(a: &[u64], b: &[u64], count: usize) -> Matching {
    let tolerance = [a, b].into_iter().filter_map(interval).min().unwrap_or(0) / 2 + ROUNDING;
    let (a_end, b_end) = (a.last().copied().unwrap_or(0), b.last().copied().unwrap_or(0));
    let is_common = |time: &&u64| **time <= a_end.min(b_end) + tolerance;
    let common = a.iter().take_while(is_common).count();
    let all: Vec<_> =
        (0..common).map(|index| Pair { a: index, b: nearest(b, a[index], tolerance) }).collect();
    let mut partners: Vec<_> = all.iter().filter_map(|pair| pair.b).collect();
    partners.dedup();
    let lacking = all.iter().filter(|pair| pair.b.is_none()).count();
    let surplus = b.iter().take_while(is_common).count().saturating_sub(partners.len());
    let pairs = if all.len() <= count {
        all
    } else {
        let whole: Vec<_> = all.into_iter().filter(|pair| pair.b.is_some()).collect();
        evenly(whole.len(), count).map(|index| whole[index]).collect()
    };
    let rest = |end: u64, other: u64| if end > other + tolerance { end - other } else { 0 };
    Matching {
        pairs,
        common,
        lacking,
        surplus,
        a_rest: rest(a_end, b_end),
        b_rest: rest(b_end, a_end),
    }
}

/// The usual time between frames; `None` for a single one.
fn interval(times: &[u64]) -> Option<u64> {
    let mut intervals: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    intervals.retain(|interval| *interval > 0);
    intervals.sort_unstable();
    intervals.get(intervals.len() / 2).copied()
}

/// The number of the time in `times` that is nearest to `time`, at most `tolerance` away.
fn nearest(times: &[u64], time: u64, tolerance: u64) -> Option<usize> {
    let after = times.partition_point(|other| *other < time);
    let near = after.saturating_sub(1)..(after + 1).min(times.len());
    near.min_by_key(|index| times[*index].abs_diff(time))
        .filter(|index| times[*index].abs_diff(time) <= tolerance)
}

/// At most `count` of the numbers below `all`, the first and the last among them.
fn evenly(all: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(all);
    let last = count.saturating_sub(1);
    (0..count).map(move |k| (k * (all - 1) + last / 2).checked_div(last).unwrap_or(all / 2))
}
