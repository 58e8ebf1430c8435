//! That the relay does what it is asked to do, and counts it.

use super::*;

fn exchange(faults: Faults, seed: u64, datagrams: u16) -> (Vec<u16>, Counts) {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let relay = Relay::start(server.local_addr().unwrap(), faults, seed).unwrap();
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for number in 0..datagrams {
        client.send_to(&number.to_le_bytes(), relay.address()).unwrap();
    }
    let mut buffer = [0; 2];
    let mut arrived = Vec::new();
    while server.recv(&mut buffer).is_ok() {
        arrived.push(u16::from_le_bytes(buffer));
    }
    (arrived, relay.counts())
}

fn bad() -> Faults {
    Faults {
        loss: 0.1,
        duplication: 0.1,
        reordering: 0.1,
        held_back: Duration::from_millis(30),
        delay: (Duration::ZERO, Duration::from_millis(2)),
    }
}

#[test]
fn a_good_link_passes_all_in_order() {
    let (arrived, counts) = exchange(Faults::none(Duration::from_millis(1)), 1, 200);
    assert_eq!(arrived, (0..200).collect::<Vec<_>>());
    assert_eq!(counts, Counts { passed: 200, ..Counts::default() });
}

#[test]
fn the_seed_decides_what_is_lost_and_what_comes_twice() {
    let sorted = |seed| {
        let (mut arrived, counts) = exchange(bad(), seed, 200);
        assert!(!arrived.is_sorted(), "something is overtaken: {counts:?}");
        assert!([counts.dropped, counts.duplicated, counts.reordered].iter().all(|&n| n > 0));
        assert_eq!(counts.passed, arrived.len() as u64);
        assert_eq!(counts.passed, 200 - counts.dropped + counts.duplicated);
        arrived.sort_unstable();
        arrived
    };
    assert_eq!(sorted(1), sorted(1));
    assert_ne!(sorted(1), sorted(2));
}

#[test]
fn answers_find_back_and_nothing_passes_in_a_cut() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let delay = Duration::from_millis(1);
    let relay = Relay::start(server.local_addr().unwrap(), Faults::none(delay), 1).unwrap();
    let clients: Vec<UdpSocket> =
        (0..2).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    let mut buffer = [0; 1];
    for (number, client) in clients.iter().enumerate() {
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.send_to(&[number as u8], relay.address()).unwrap();
        let (_, seen) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer, [number as u8]);
        server.send_to(&[100 + number as u8], seen).unwrap();
    }
    for (number, client) in clients.iter().enumerate() {
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (1, relay.address()));
        assert_eq!(buffer, [100 + number as u8]);
    }
    relay.cut(Duration::from_secs(3600));
    clients[0].send_to(&[7], relay.address()).unwrap();
    while relay.counts().cut == 0 {
        std::thread::sleep(LOOK);
    }
    relay.cut(Duration::ZERO);
    clients[0].send_to(&[8], relay.address()).unwrap();
    server.recv(&mut buffer).unwrap();
    assert_eq!((buffer, relay.counts().cut), ([8], 1));
}
