//! Trains with the client alone: no built-in model, no built-in loop. The model is a line, y = 2 x - 1, found by least
//! squares on points that this program makes up.
//!
//! ```text
//! cargo build --release --examples
//! windlass train --worker-program target/release/examples/own_loop --variable slope:1:zeros --variable offset:1:zeros \
//!     --examples 200000 --passes 1 --batch 50 --rate 0.2
//! ```

use std::path::Path;

use windlass_common::rng::{Purpose, Rng};
use windlass_common::wire::WorkerReport;
use windlass_worker::client::{Client, JoinOptions, Next};

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flag =
        |name: &str| std::env::args().skip_while(|a| a != name).nth(1).ok_or(format!("{name} is needed"));
    let options = JoinOptions::new(flag("--coordinator")?, Path::new(&flag("--identity")?))?;
    let mut client = Client::join(options).await?;
    let (slope, offset) = (client.variable("slope")?.start, client.variable("offset")?.start);
    let (seed, batch, worker) = (client.plan().seed, client.plan().training.batch, client.worker().0);

    let mut values = client.values();
    let mut next = client.pull(&mut values).await?;
    while let Next::Step(step) = next {
        // The points follow from the step, so that a worker that was restarted makes the same again.
        let mut rng = Rng::new(seed, Purpose::Shuffle { worker, pass: step.0 });
        let mut gradient = client.gradient();
        gradient.fill(0.0);
        let mut loss = 0.0;
        for _ in 0..batch {
            let x = 2.0 * rng.unit() as f32 - 1.0;
            let error = values[slope] * x + values[offset] - (2.0 * x - 1.0);
            gradient[slope] += error * x / batch as f32;
            gradient[offset] += error / batch as f32;
            loss += 0.5 * error * error / batch as f32;
        }
        next = client.push_pull(gradient, client.batch(batch, loss), &mut values).await?;
    }
    println!("y = {} x + {}", values[slope], values[offset]);
    client.leave(WorkerReport { finished: true, ..WorkerReport::default() }).await?;
    Ok(())
}
