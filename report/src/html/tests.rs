//! Tests whole pages: that they can be drawn, read and trusted.

use super::*;
use crate::data::{Outcome, Point};
use crate::sample;

/// A page must be well formed, finite and self-contained.
fn check(page: &str) {
    let drawn = page.split_once("<body>").unwrap().1;
    for attribute in drawn.split('"').skip(1).step_by(2) {
        assert!(!attribute.contains("NaN") && !attribute.contains("inf"), "{attribute}");
    }
    for forbidden in ["<script", "http:", "https:", "@import", "url(", "<link", "<img"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    let mut open = Vec::new();
    for tag in drawn.split('<').skip(1) {
        let (inside, _) = tag.split_once('>').expect("every < has its >");
        let name = inside.split([' ', '/']).next().unwrap();
        match inside.strip_prefix('/') {
            Some("body" | "html") => {}
            Some(name) => assert_eq!(open.pop(), Some(name), "closes <{inside}>"),
            None if inside.ends_with('/') => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn one_to_twelve_modes_can_be_drawn() {
    for modes in 0..=12 {
        let comparison = sample::comparison(modes, 3);
        let page = html(&comparison);
        check(&page);
        assert!(comparison.modes.iter().all(|mode| page.contains(&mode.name)));
        let figures = page.matches("<figure>").count();
        assert_eq!(figures, [1, 6, 8][usize::from(modes > 0) + usize::from(modes > 6)], "{modes} modes");
    }
}

#[test]
fn every_text_is_escaped() {
    let mut comparison = sample::comparison(8, 1);
    let evil = "<script>alert('&\"')</script>".to_owned();
    comparison.title.clone_from(&evil);
    comparison.command.clone_from(&evil);
    comparison.model.clone_from(&evil);
    comparison.data.clone_from(&evil);
    comparison.partition.clone_from(&evil);
    comparison.heterogeneity.clone_from(&evil);
    comparison.machine.clone_from(&evil);
    for mode in &mut comparison.modes {
        mode.name.clone_from(&evil);
        mode.runs[0].outcome = Outcome::Failed { reason: evil.clone() };
    }
    for baseline in &mut comparison.baselines {
        baseline.name.clone_from(&evil);
        baseline.note.clone_from(&evil);
    }
    let page = html(&comparison);
    check(&page);
    assert!(page.contains("&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;"));
}

#[test]
fn odd_curves_can_be_drawn() {
    let mut comparison = sample::comparison(6, 2);
    let mut runs = comparison.modes.iter_mut().flat_map(|mode| &mut mode.runs);
    let mut next = || runs.next().unwrap();
    next().curve.clear();
    next().curve.truncate(1);
    next().curve.iter_mut().for_each(|point| point.accuracy = f64::NAN);
    next().curve.iter_mut().for_each(|point| point.seconds = f64::INFINITY);
    next().curve = vec![Point { accuracy: 0.1, ..Point::default() }; 4];
    let diverged = next();
    diverged.outcome = Outcome::Diverged { reason: "loss is NaN".into() };
    (diverged.at_target, diverged.at_end) = (None, None);
    let odd = next();
    (odd.staleness_mean, odd.staleness_p95, odd.best_accuracy) = (f64::NAN, f64::INFINITY, f64::NAN);
    odd.idle_share = vec![f64::NAN, 0.5];
    check(&html(&comparison));
}

#[test]
fn a_mode_that_cannot_be_drawn_is_named() {
    let mut comparison = sample::comparison(3, 1);
    let run = &mut comparison.modes[1].runs[0];
    run.outcome = Outcome::Failed { reason: "no server came up".into() };
    run.curve.clear();
    let page = html(&comparison);
    check(&page);
    assert_eq!(page.matches("Not shown, because nothing was evaluated: sync:backup=1.").count(), 3);
    assert_eq!(page.matches("completed and measured it: sync:backup=1.").count(), 2);
}

#[test]
fn a_page_without_any_result_can_be_drawn() {
    let mut comparison = sample::comparison(2, 1);
    for run in comparison.modes.iter_mut().flat_map(|mode| &mut mode.runs) {
        run.outcome = Outcome::Failed { reason: "no server came up".into() };
        run.curve.clear();
        (run.at_target, run.at_end) = (None, None);
    }
    comparison.baselines.clear();
    comparison.class_counts.clear();
    comparison.target = None;
    let page = html(&comparison);
    check(&page);
    assert_eq!(page.matches("no server came up").count(), 2);
    assert_eq!(page.matches("<figure>").count(), 0);
}

#[test]
fn many_clients_and_workers_can_be_drawn() {
    let mut comparison = sample::comparison(8, 1);
    comparison.class_counts = vec![vec![3; 100]; 1000];
    for run in comparison.modes.iter_mut().flat_map(|mode| &mut mode.runs) {
        run.idle_share = vec![0.25; 64];
    }
    let page = html(&comparison);
    check(&page);
    assert!(page.len() < 8_000_000, "{} bytes", page.len());
}
