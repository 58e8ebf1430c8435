//! Deals each example to the client that a CSV column names.

use super::DealError;
use crate::data::Groups;

/// One client for each distinct value of the column among the training examples, in the order of the sorted values.
pub(super) fn deal(
    groups: Option<&Groups>,
    column: &str,
    clients: usize,
) -> Result<Vec<Vec<u32>>, DealError> {
    let groups = groups
        .filter(|groups| groups.column == column)
        .ok_or_else(|| DealError::NoColumn { column: column.to_owned() })?;
    let values = groups.names.len();
    if values != clients {
        return Err(DealError::ColumnClients { column: column.to_owned(), values, clients });
    }
    let mut dealt = vec![Vec::new(); clients];
    // Loading limits a data set to what 32 bits can number.
    for (example, &group) in (0_u32..).zip(&groups.of_example) {
        dealt[group as usize].push(example);
    }
    Ok(dealt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_clients_if_they_are_as_many() {
        let groups = Groups {
            column: "writer".into(),
            of_example: vec![1, 0, 1, 2],
            names: vec!["ann".into(), "bob".into(), "cy".into()],
        };
        assert_eq!(deal(Some(&groups), "writer", 3).unwrap(), [vec![1], vec![0, 2], vec![3]]);
        let error = |groups, column, clients| deal(groups, column, clients).unwrap_err().to_string();
        assert_eq!(
            error(Some(&groups), "writer", 4),
            "column writer has 3 distinct values among the training examples, and there are 4 clients; with partition \
             column:writer there must be 3"
        );
        for other in [error(Some(&groups), "hand", 3), error(None, "hand", 3)] {
            assert_eq!(
                other,
                "partition column:hand needs data with a column hand, that is, CSV files loaded with it"
            );
        }
    }
}
