//! How often strangers' faces reach a threshold, by embedder: measured once, for servers that have no cohort of their own.

/// The false match rate of an embedder by threshold: the probability that a stranger's face has at least that cosine to the mean
/// embedding of one given person.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImpostorTable {
    /// The embedder's name.
    pub embedder: &'static str,
    /// False match rates, falling, and the threshold of each, rising: of people with one photograph.
    pub one_photograph: &'static [(f64, f64)],
    /// The same of people with three.
    pub several_photographs: &'static [(f64, f64)],
}

impl ImpostorTable {
    /// Returns the table of an embedder; none if it was not measured.
    pub fn of(embedder: &str) -> Option<&'static Self> {
        super::measured::TABLES.iter().find(|table| table.embedder == embedder)
    }
}

/// Returns the false match rate at `threshold`, 0 to 1: between the rows by a straight line of its logarithm, beyond them by the
/// slope of the first or last ones.
pub(super) fn false_match_rate(rows: &[(f64, f64)], threshold: f64) -> f64 {
    let next = rows.partition_point(|(_, at)| *at < threshold).clamp(1, rows.len().saturating_sub(1).max(1));
    // Beyond the last row, the slope is that of more than one step: the last rate rests on few comparisons.
    let before = if next + 1 == rows.len() && rows.last().is_some_and(|(_, last)| threshold > *last) {
        next.saturating_sub(2)
    } else {
        next - 1
    };
    let (Some((low, at_low)), Some((high, at_high))) = (rows.get(before), rows.get(next)) else { return 1.0 };
    let slope = (high.ln() - low.ln()) / (at_high - at_low);
    (high.ln() + slope * (threshold - at_high)).exp().min(1.0)
}

/// The people of a gallery, by their number of photographs.
#[derive(Debug, Clone, Copy)]
pub(super) struct GallerySize {
    /// People with one photograph.
    pub one_photograph: usize,
    /// People with several.
    pub several_photographs: usize,
}

impl GallerySize {
    /// Returns the probability that a stranger's face has at least this cosine to anybody's mean embedding, if the
    /// comparisons are independent of each other: `1 - (1 - FMR)^N`.
    pub(super) fn false_positive_rate(self, table: &ImpostorTable, threshold: f64) -> f64 {
        self.scaled_rate(table, threshold, 1.0)
    }

    /// Returns the same probability for somebody of the gallery, who is compared with all others.
    pub(super) fn false_positive_rate_among_others(self, table: &ImpostorTable, threshold: f64) -> f64 {
        let people = (self.one_photograph + self.several_photographs) as f64;
        self.scaled_rate(table, threshold, (people - 1.0).max(0.0) / people.max(1.0))
    }

    fn scaled_rate(self, table: &ImpostorTable, threshold: f64, scale: f64) -> f64 {
        let rejected = |people: usize, rows| {
            // Zero people times the logarithm of zero would be NaN.
            if people == 0 {
                return 0.0;
            }
            people as f64 * scale * (-false_match_rate(rows, threshold)).ln_1p()
        };
        let none = rejected(self.one_photograph, table.one_photograph)
            + rejected(self.several_photographs, table.several_photographs);
        -none.exp_m1()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [(f64, f64); 4] = [(0.1, 0.2), (0.01, 0.3), (0.001, 0.4), (0.0001, 0.5)];
    const TABLE: ImpostorTable =
        ImpostorTable { embedder: "example", one_photograph: &ROWS, several_photographs: &ROWS };

    #[test]
    fn rates_between_and_beyond_the_rows_follow_their_slope() {
        for (threshold, rate) in
            [(0.2, 0.1), (0.25, 0.1_f64.powf(1.5)), (0.5, 1e-4), (0.6, 1e-5), (0.1, 1.0), (-0.5, 1.0)]
        {
            let found = false_match_rate(&ROWS, threshold);
            assert!((found / rate - 1.0).abs() < 1e-9, "{threshold}: {found} instead of {rate}");
        }
    }

    #[test]
    fn the_rate_of_a_gallery_grows_with_its_people() {
        let rate = |one_photograph, several_photographs| {
            GallerySize { one_photograph, several_photographs }.false_positive_rate(&TABLE, 0.4)
        };
        assert!((rate(1, 0) - 0.001).abs() < 1e-12);
        assert!((rate(60, 40) - (1.0 - 0.999_f64.powi(100))).abs() < 1e-12);
        assert_eq!(rate(0, 0), 0.0);
        let size = GallerySize { one_photograph: 100, several_photographs: 0 };
        let among_others = size.false_positive_rate_among_others(&TABLE, 0.4);
        assert!((among_others - (1.0 - 0.999_f64.powi(99))).abs() < 1e-12);
        assert_eq!(size.false_positive_rate(&TABLE, -1.0), 1.0);
    }

    #[test]
    fn measured_tables_fall_with_the_threshold() {
        let tables = ["mobilefacenet", "dlib-resnet"].map(|name| ImpostorTable::of(name).expect("a table"));
        for rows in tables.iter().flat_map(|table| [table.one_photograph, table.several_photographs]) {
            assert!(rows.len() > 5);
            assert!(rows.is_sorted_by(|(rate, at), (next, next_at)| rate > next && at < next_at));
            assert!(rows.iter().all(|(rate, at)| (0.0..1.0).contains(rate) && (-1.0..1.0).contains(at)));
        }
        assert_eq!(ImpostorTable::of("none"), None);
    }
}
