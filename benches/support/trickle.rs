//! Owns the webhooks that arrive while a sync runs: users of the stand-in sign up, change and go, and each change is posted to the
//! ingress at a steady rate, one after another.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use headcount::{
    clerk::{made_up::Person, stand_in::World},
    time::now,
};

use super::{
    Outcome,
    drift::{ONE_IN, UNTOUCHED, id},
    load,
};

/// A prime: as far as two users in a row are apart.
const STRIDE: u64 = 7_368_787;

/// Posts until it is stopped.
pub struct Trickle {
    stop: Arc<AtomicBool>,
    posting: JoinHandle<Outcome<u64>>,
}

impl Trickle {
    /// Starts. With `deletions` some users go too.
    pub fn start(world: &World, address: &str, users: u64, per_second: u32, deletions: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, world, address) = (Arc::clone(&stop), world.clone(), address.to_owned());
        let posting = thread::spawn(move || {
            let signer = load::Signer::new()?;
            let start = Instant::now();
            let mut sent = 0;
            for number in 0.. {
                thread::sleep(
                    (start + Duration::from_secs(1) / per_second * number)
                        .saturating_duration_since(Instant::now()),
                );
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let Some((event_type, person)) = happen(&world, u64::from(number), users, deletions) else {
                    continue;
                };
                let message_id = format!("msg_trickle{}n{number}", u8::from(deletions));
                post(&address, &signer.request(&address, &message_id, &person.event(event_type, now())))?;
                sent += 1;
            }
            Ok(sent)
        });
        Self { stop, posting }
    }

    /// Stops; tells how many were accepted.
    ///
    /// # Errors
    /// One was not.
    pub fn stop(self) -> Outcome<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.posting.join().map_err(|_| "the trickle panicked")?
    }
}

/// Something happens to somebody; `None` where the user is gone already.
fn happen(world: &World, number: u64, users: u64, deletions: bool) -> Option<(&'static str, Person)> {
    let ending = UNTOUCHED + number % (ONE_IN - UNTOUCHED);
    let user = id((number * STRIDE % (users / ONE_IN).max(1)) * ONE_IN + ending);
    match number % 10 {
        0 => {
            let person = Person::of(format!("user_trickle{}n{number}", u8::from(deletions)), now());
            world.insert(person.clone());
            Some(("user.created", person))
        }
        1 if deletions => Some(("user.deleted", world.delete(&user)?)),
        _ => {
            let change = |person: &mut Person| person.last_name = Some(format!("Changed {number}"));
            Some(("user.updated", world.change(&user, now(), change)?))
        }
    }
}

fn post(address: &str, request: &[u8]) -> Outcome<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(15)))?;
    stream.write_all(request)?;
    let (mut answer, mut part) = (Vec::new(), [0; 1024]);
    loop {
        match load::read(&answer) {
            Some(true) => return Ok(()),
            Some(false) => return Err("a webhook was refused".into()),
            None => {}
        }
        match stream.read(&mut part)? {
            0 => return Err("the ingress hung up".into()),
            bytes => answer.extend_from_slice(&part[..bytes]),
        }
    }
}
