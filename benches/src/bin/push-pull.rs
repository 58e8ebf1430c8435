//! Push-pull of a whole model, apply included, beside bare quinn with the same bytes, in turn.

use std::time::Duration;

use clap::Parser;
use windlass_benches::machine::{median, spread, stolen, stolen_share};
use windlass_benches::setting::{Identities, plan, serve};
use windlass_limit::bare::{self, Payload, Took};
use windlass_worker::client::{BlockingClient, JoinOptions, Patience};

/// Measures push-pull over QUIC beside bare quinn, interleaved.
#[derive(Debug, Parser)]
struct Flags {
    /// The model whose values are exchanged.
    #[arg(long, default_value = "2nn")]
    model: String,
    /// Pairs of measurements.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Push-pulls of each client in one measurement.
    #[arg(long, default_value_t = 1000)]
    exchanges: u64,
    /// Numbers of clients to measure with.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    clients: Vec<u32>,
}

fn main() -> anyhow::Result<()> {
    windlass_process::settle();
    let flags = Flags::parse();
    let values = usize::try_from(plan(&flags.model, 1, 1)?.layout()?.total())?;
    println!(
        "push-pull of {values} f32 values, {} exchanges per client, {} pairs",
        flags.exchanges, flags.pairs
    );
    for &clients in &flags.clients {
        let before = stolen();
        let (mut ours, mut bares) = (Vec::new(), Vec::new());
        for _ in 0..flags.pairs {
            let identities = Identities::new(clients)?;
            let payload = Payload { up: 4 * values, down: 4 * values };
            let limits = windlass_ps::limits();
            let servers = bare::serve(&identities.server, &limits, payload, identities.workers.len())?;
            bares.push(bare::exchange(&servers, &identities.workers, payload, flags.exchanges)?);
            ours.push(windlass(&flags, clients)?);
        }
        let of = |took: &[Took], f: fn(&Took) -> f64| took.iter().map(f).collect::<Vec<f64>>();
        let ratios: Vec<f64> =
            ours.iter().zip(&bares).map(|(o, b)| o.per_second() / b.per_second()).collect();
        println!("\n{clients} client(s)                 median (min to max)");
        println!("  bare quinn, exchanges/s     {}", spread(&of(&bares, Took::per_second)));
        println!("  windlass, exchanges/s       {}", spread(&of(&ours, Took::per_second)));
        println!("  bare quinn, core-ms each    {}", spread(&of(&bares, |t| t.core_seconds() * 1e3)));
        println!("  windlass, core-ms each      {}", spread(&of(&ours, |t| t.core_seconds() * 1e3)));
        println!("  windlass / bare, exchanges  {}", spread(&ratios));
        let wall: Vec<f64> = ours.iter().map(|t| t.wall.as_secs_f64()).collect();
        println!("  seconds per measurement     {:.1}", median(&wall));
        if let Some(share) = stolen_share(before) {
            println!("  stolen processor time       {:.1} %", share * 100.0);
        }
    }
    Ok(())
}

fn windlass(flags: &Flags, clients: u32) -> anyhow::Result<Took> {
    let identities = Identities::new(clients)?;
    let directory = tempfile::tempdir()?;
    let pushes = u64::from(clients) * (flags.exchanges + 10_000);
    let address = serve(plan(&flags.model, clients, pushes)?, identities.server, directory.path())?;
    let identities: Vec<_> = identities.workers.into_iter().map(|i| std::sync::Mutex::new(Some(i))).collect();
    bare::at_once(clients as usize, flags.exchanges, |client| {
        let identity = identities[client].lock().ok().and_then(|mut i| i.take());
        let identity = identity.ok_or_else(|| anyhow::anyhow!("each client is prepared once"))?;
        let coordinator = address.to_string();
        let join = JoinOptions {
            coordinator,
            identity,
            connect_deadline: Duration::from_secs(10),
            patience: Patience::default(),
        };
        let mut client = BlockingClient::join(join, std::future::pending())?;
        let mut values = client.values();
        client.pull(&mut values)?;
        Ok(move || {
            let gradient = client.gradient();
            client.push_pull(gradient, client.batch(1, 0.0), &mut values)?;
            Ok(())
        })
    })
}
