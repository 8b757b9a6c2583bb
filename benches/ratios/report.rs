//! Figures with their spread.

/// One run of a load.
#[derive(Clone, Default)]
pub(crate) struct Run {
    pub(crate) calls: u64,
    pub(crate) per_second: f64,
    pub(crate) failed: u64,
    /// Processor time of the server, in microseconds a call: what other work on the machine
    /// disturbs least.
    pub(crate) processor: f64,
    /// How long each call took, where it was asked.
    pub(crate) micros: Vec<u32>,
}

impl Run {
    /// The time that 99 of 100 calls did not take longer than, in milliseconds.
    pub(crate) fn p99(&self) -> f64 {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() * 99 / 100).map_or(f64::NAN, |micros| f64::from(*micros) / 1_000.0)
    }
}

/// Runs against both, in pairs that followed each other.
#[derive(Default)]
pub(crate) struct Pairs(pub(crate) Vec<(Run, Run)>);

/// Middle, least and most.
pub(crate) struct Spread {
    pub(crate) median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_unstable_by(f64::total_cmp);
        let (least, most) = (values[0], values[values.len() - 1]);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            (values[middle - 1] + values[middle]) / 2.0
        };
        Self { median, least, most }
    }

    fn show(&self, decimals: usize) -> String {
        format!("{:.decimals$} [{:.decimals$}..{:.decimals$}]", self.median, self.least, self.most)
    }
}

impl Pairs {
    /// A line of the table; `floor` is what the ratio of throughputs should not be under.
    pub(crate) fn print(&self, name: &str, floor: Option<f64>) {
        let of = |pick: fn(&(Run, Run)) -> f64| Spread::of(self.0.iter().map(pick));
        let ratio = of(|(echo, jeton)| jeton.per_second / echo.per_second);
        let verdict = floor.map_or(String::new(), |floor| {
            format!("  floor {floor:.2} {}", if ratio.median >= floor { "held" } else { "MISSED" })
        });
        println!(
            "{name:<22} echo/s {:<26} jeton/s {:<26} ratio {}{verdict}",
            of(|(echo, _)| echo.per_second).show(0),
            of(|(_, jeton)| jeton.per_second).show(0),
            ratio.show(3),
        );
        if self.0.iter().all(|(_, jeton)| !jeton.micros.is_empty()) {
            println!(
                "{:<22} p99 ms {:<26} p99 ms  {:<26} ratio {}",
                "",
                of(|(echo, _)| echo.p99()).show(2),
                of(|(_, jeton)| jeton.p99()).show(2),
                of(|(echo, jeton)| jeton.p99() / echo.p99()).show(2),
            );
        }
        if self.0.iter().all(|(_, jeton)| jeton.processor > 0.0) {
            println!(
                "{:<22} cpu us  {:<25} cpu us   {:<25} ratio {}",
                "",
                of(|(echo, _)| echo.processor).show(1),
                of(|(_, jeton)| jeton.processor).show(1),
                of(|(echo, jeton)| jeton.processor / echo.processor).show(2),
            );
        }
        let failed =
            self.0.iter().fold((0, 0), |(a, b), (echo, jeton)| (a + echo.failed, b + jeton.failed));
        if failed != (0, 0) {
            println!("{:<22} FAILED CALLS: {} of the echo, {} of jeton", "", failed.0, failed.1);
        }
    }
}
