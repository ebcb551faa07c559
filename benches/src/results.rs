//! Every figure of every round, and their medians.

use std::collections::BTreeMap;

/// Figures by row and peer, in the order of their rounds.
#[derive(Debug, Default)]
pub struct Results(BTreeMap<(String, String), Vec<f64>>);

impl Results {
    /// Adds a round's figure.
    pub fn add(&mut self, row: &str, peer: &str, figure: f64) {
        self.0.entry((row.into(), peer.into())).or_default().push(figure);
    }

    /// The median over the rounds; `None` when there is no figure.
    pub fn median(&self, row: &str, peer: &str) -> Option<f64> {
        let mut figures = self.0.get(&(row.to_owned(), peer.to_owned()))?.clone();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        Some(if figures.len().is_multiple_of(2) {
            f64::midpoint(figures[middle - 1], figures[middle])
        } else {
            figures[middle]
        })
    }

    /// The smallest and the largest figure.
    pub fn range(&self, row: &str, peer: &str) -> Option<(f64, f64)> {
        let figures = self.0.get(&(row.to_owned(), peer.to_owned()))?;
        let smallest = figures.iter().copied().min_by(f64::total_cmp)?;
        Some((smallest, figures.iter().copied().max_by(f64::total_cmp)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        let mut results = Results::default();
        for figure in [9.0, 1.0, 5.0] {
            results.add("row", "peer", figure);
        }
        assert_eq!(results.median("row", "peer"), Some(5.0));
        results.add("row", "peer", 6.0);
        assert_eq!(results.median("row", "peer"), Some(5.5));
        assert_eq!(results.range("row", "peer"), Some((1.0, 9.0)));
        assert_eq!(results.median("row", "another"), None);
    }
}
