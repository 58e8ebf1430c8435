//! Tests of how partitions are read, written and checked.

use proptest::prelude::*;

use super::*;

fn any_partition() -> impl Strategy<Value = Partition> {
    prop_oneof![
        Just(Partition::Iid),
        Just(Partition::Own),
        (1_u32..).prop_map(|per_client| Partition::Shards { per_client }),
        (1_u32..).prop_map(|per_client| Partition::Labels { per_client }),
        (1e-6..1e6).prop_map(|alpha| Partition::Dirichlet { alpha }),
        (1e-6..1e6).prop_map(|beta| Partition::DirichletClass { beta }),
        (0.0..10.0).prop_map(|sigma| Partition::Lognormal { sigma }),
        "[a-z:][a-z :]{0,8}[a-z:]".prop_map(|column| Partition::Column { column }),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(partition in any_partition()) {
        let read: Result<Partition, _> = partition.to_string().parse();
        prop_assert_eq!(read.as_ref(), Ok(&partition));
        let text = toml::to_string(&partition).unwrap();
        prop_assert_eq!(toml::from_str::<Partition>(&text).unwrap(), partition);
    }

    #[test]
    fn any_text_is_a_partition_or_a_sentence(text in "[a-z:0-9. -]{0,20}") {
        if let Err(error) = text.parse::<Partition>() {
            prop_assert!(error.to_string().contains("partition"), "{}", error);
        }
    }
}

#[test]
fn toml_names_the_rule_and_refuses_what_it_does_not_know() {
    let read = |text| toml::from_str::<Partition>(text).map_err(|e| e.to_string());
    assert_eq!(read("name = \"iid\""), Ok(Partition::Iid));
    assert_eq!(read("name = \"shards\"\nper_client = 2"), Ok(Partition::Shards { per_client: 2 }));
    assert_eq!(read("name = \"dirichlet-class\"\nbeta = 0.5"), Ok(Partition::DirichletClass { beta: 0.5 }));
    assert!(read("name = \"iid\"\nalpha = 1.0").unwrap_err().contains("alpha"));
    assert!(read("name = \"own\"\nalpha = 1.0").unwrap_err().contains("alpha"));
    assert!(read("name = \"labels\"\nper_client = 2\nbeta = 1.0").unwrap_err().contains("beta"));
    assert!(read("name = \"dirichlet\"").unwrap_err().contains("alpha"));
    assert!(read("name = \"random\"").unwrap_err().contains("random"));
}

#[test]
fn what_cannot_be_read_is_said_with_an_example() {
    let error = |text: &str| text.parse::<Partition>().unwrap_err().to_string();
    assert!(error("random").starts_with("there is no partition \"random\"; write iid, shards:2, "));
    assert!(error("iid:2").starts_with("there is no partition \"iid:2\"; "));
    assert_eq!(
        error("shards"),
        "partition \"shards\" needs a whole number after the colon; write it as shards:2"
    );
    assert_eq!(
        error("dirichlet:much"),
        "partition \"dirichlet:much\" needs a number after the colon; write it as dirichlet:1.0"
    );
    assert!(error("labels:1.5").contains("a whole number"));
    assert_eq!(error("labels:0"), "partition labels:0: each client needs at least one");
    assert_eq!(
        error("dirichlet:0"),
        "partition dirichlet:0.0: the concentration must lie between 1e-6 and 1e6"
    );
    assert!(error("dirichlet-class:NaN").contains("NaN: the concentration"));
    assert_eq!(error("lognormal:-1"), "partition lognormal:-1.0: the deviation must lie between 0 and 10");
    assert_eq!(error("column:"), "the partition's column has no name; write it as column:NAME");
    assert_eq!(error("column"), error("column:"));
    assert_eq!("column: a:b ".parse(), Ok(Partition::Column { column: "a:b".into() }));
}

#[test]
fn impossible_numbers_are_found_without_the_data() {
    let check = |text: &str, clients, examples| -> Result<(), String> {
        text.parse::<Partition>().unwrap().check(clients, examples).map_err(|e| e.to_string())
    };
    let rules = ["iid", "shards:1", "dirichlet:1", "lognormal:1", "labels:2", "column:x"];
    for text in rules {
        assert_eq!(check(text, 10, 10), Ok(()));
        assert_eq!(
            check(text, 11, 10).unwrap_err(),
            "11 clients cannot share 10 training examples, for each needs one; use fewer clients"
        );
    }
    assert_eq!(check("iid", 0, 10).unwrap_err(), "there are 0 clients; at least 1 is needed");
    assert_eq!(check("own", 11, 0), Ok(()));
    assert_eq!(check("shards:2", 100, 200), Ok(()));
    assert_eq!(
        check("shards:2", 100, 199).unwrap_err(),
        "partition shards:2 cuts 200 shards for 100 clients, and there are only 199 training examples; use fewer \
         clients or fewer shards"
    );
    assert_eq!(check("dirichlet-class:0.5", 100, 1000), Ok(()));
    assert_eq!(
        check("dirichlet-class:0.5", 100, 999).unwrap_err(),
        "partition dirichlet-class:0.5 gives each client at least 10 examples, so 100 clients need 1000; there are \
         999 training examples; use fewer clients"
    );
    // Numbers that came from a file are checked here for the first time.
    assert!(Partition::Dirichlet { alpha: f64::INFINITY }.check(1, 1).is_err());
    assert!(Partition::Column { column: " x".into() }.check(1, 1).is_err());
}
