//! The labels of many people, in one piece of memory.

use std::{fmt, ops::Range};

use crate::{IdentifyError, format::corrupt};

/// Sorted and unique labels. A million strings of their own would take as much memory as a tenth of the embeddings.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Labels {
    text: String,
    /// Where each label ends.
    ends: Vec<u32>,
}

impl Labels {
    pub(crate) fn with_capacity(labels: usize) -> Self {
        Self { text: String::new(), ends: Vec::with_capacity(labels) }
    }

    /// Appends a label, which must be greater than the last one.
    pub(crate) fn push(&mut self, label: &str) -> Result<(), IdentifyError> {
        if self.ends.len().checked_sub(1).and_then(|last| self.get(last)).is_some_and(|last| last >= label) {
            return Err(corrupt("the labels are not sorted"));
        }
        let end = u32::try_from(self.text.len() + label.len());
        let end = end.map_err(|_| corrupt("the labels are longer than 4 GiB"))?;
        self.text.push_str(label);
        self.ends.push(end);
        Ok(())
    }

    /// Frees memory that no label takes.
    pub(crate) fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    /// Returns the number of labels.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns whether there is no label.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the label at a position.
    pub fn get(&self, position: usize) -> Option<&str> {
        self.text.get(self.range(position)?)
    }

    fn range(&self, position: usize) -> Option<Range<usize>> {
        let end = |position: usize| usize::try_from(*self.ends.get(position)?).ok();
        Some(position.checked_sub(1).map_or(Some(0), end)?..end(position)?)
    }

    /// Returns the position of a label.
    pub fn position(&self, label: &str) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.get(middle)?.cmp(label) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Iterates over the labels in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        (0..self.len()).map(|position| self.get(position).unwrap_or_default())
    }
}

/// Without the labels, so that they may stand in a log.
impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} labels", self.len())
    }
}

impl PartialEq<[String]> for Labels {
    fn eq(&self, other: &[String]) -> bool {
        self.iter().eq(other.iter().map(String::as_str))
    }
}

impl PartialEq<Vec<String>> for Labels {
    fn eq(&self, other: &Vec<String>) -> bool {
        *self == *other.as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_by_position_and_by_themselves() {
        let mut labels = Labels::with_capacity(4);
        let all = ["", "ada", "bob", "ß"].map(String::from);
        assert!(labels.is_empty());
        for label in &all {
            labels.push(label).unwrap();
        }
        assert_eq!(labels, all[..]);
        assert_eq!((labels.len(), labels.iter().len()), (4, 4));
        for (position, label) in all.iter().enumerate() {
            assert_eq!(
                (labels.get(position), labels.position(label)),
                (Some(label.as_str()), Some(position))
            );
        }
        assert_eq!((labels.get(4), labels.position("bo"), labels.position("z")), (None, None, None));
        assert!(labels.push("ß").is_err() && labels.push("a").is_err());
        assert_eq!(format!("{labels:?}"), "4 labels");
    }
}
