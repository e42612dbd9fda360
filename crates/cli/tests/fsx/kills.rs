//! Servers that die in the middle of requests, with the power or without; what they had acknowledged, or had flushed, is
//! looked for.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::RngExt as _;

use super::phase::Beside;
use super::world::{Engine, Outcome, PATIENCE, State, World};

impl World {
    /// Kills the server while clients of an image, and maybe the copying of its migration, are at work. Where there is nothing
    /// to kill, it is stopped.
    pub async fn kill(&mut self, index: usize) -> Outcome {
        let Engine::Memory(cluster) = &self.engine else {
            return self.stop().await;
        };
        let cluster = cluster.clone();
        let power_lost = self.rng.random_bool(0.5);
        let seed = self.rng.random();
        let executes = self.images[index].state == State::Prepared && self.rng.random_bool(0.6);
        self.trace(|| {
            format!(
                "{} killed, power lost {power_lost}, executing {executes}",
                self.images[index].export()
            )
        });
        let limit_bytes = self.images[index].history.lock().size_bytes();
        let requests = self.rng.random_range(1..100);
        let least = match self.plan.one_at_a_time {
            true => requests,
            false => u64::MAX,
        };
        let load = self.load(index, limit_bytes, least);
        if self.plan.one_at_a_time {
            load.end_after_least();
        }
        let clients = self.start_clients(index, &load).await?;
        let execute = match executes {
            true => Some(tokio::spawn(self.beside(index, &Beside::Execute).await)),
            false => None,
        };
        let begun = Instant::now();
        while load.done.load(Ordering::Relaxed) < requests
            && !clients.iter().any(tokio::task::JoinHandle::is_finished)
            && begun.elapsed() < PATIENCE
        {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        load.dying.store(true, Ordering::Relaxed);
        let server = self.server.as_ref().and_then(|server| server.mortal.clone());
        server.ok_or("no server")?.kill();
        if power_lost {
            cluster.power_loss(seed);
        }
        // Nobody answers any more: what is under way ends with its connection.
        for client in &clients {
            if !self.plan.one_at_a_time {
                client.abort();
            }
        }
        let mut wrong = Ok(());
        for client in clients {
            match client.await {
                Ok(done) => wrong = wrong.and(done),
                Err(error) if error.is_cancelled() => {}
                Err(error) => wrong = wrong.and(Err(error.to_string())),
            }
        }
        wrong?;
        self.abandon().await;
        self.count(&load);
        if let Some(execute) = execute {
            let done = execute.await.map_err(|error| error.to_string())?;
            match done {
                Ok(()) => self.images[index].state = State::Executed,
                // Its own client died too.
                Err(_) if power_lost => {}
                Err(error) => return Err(format!("an execute whose owner was killed: {error}")),
            }
        }
        for image in &self.images {
            image.history.lock().killed(power_lost);
        }
        self.stats.kills += 1;
        if !power_lost {
            return self.check(index, "after a kill").await;
        }
        self.stats.power_losses += 1;
        for index in 0..self.images.len() {
            self.check(index, "after a loss of power").await?;
            self.images[index].history.lock().is_durable();
        }
        Ok(())
    }
}
