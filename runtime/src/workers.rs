//! Threads for asymmetric crypto: an engine emits jobs, all cores run them, results come back in any order.

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};

use ike::crypto::provider::{CryptoError, Done, Job, Provider, run};
use ike::io::{JobRequest, JobResult};
use tokio::sync::mpsc;

/// The pool. Dropping it ends the threads once what was submitted is done.
#[derive(Debug)]
pub struct Workers {
    jobs: std_mpsc::Sender<JobRequest>,
}

impl Workers {
    /// Starts `threads` threads, or one per core when none are named, and hands back where results arrive. Neither
    /// queue has a limit: what an engine asks for is bounded by its own tables, for the key server by the half-open
    /// negotiations (one job each) and, in aggressive mode, by the first messages it works on in a second.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        provider: Arc<dyn Provider>,
        threads: Option<NonZeroUsize>,
    ) -> io::Result<(Workers, mpsc::UnboundedReceiver<JobResult>)> {
        let threads = match threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        };
        let (jobs, queue) = std_mpsc::channel::<JobRequest>();
        let (results, receiver) = mpsc::unbounded_channel();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads.get() {
            let (queue, results, provider) = (Arc::clone(&queue), results.clone(), Arc::clone(&provider));
            let work = move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(JobRequest { id, job }) = next else { return };
                    let done = run_caught(provider.as_ref(), job);
                    if results.send(JobResult { id, done }).is_err() {
                        return;
                    }
                }
            };
            std::thread::Builder::new().name(format!("crypto {number}")).spawn(work)?;
        }
        Ok((Workers { jobs }, receiver))
    }

    /// Hands over a job; its result arrives under the same id.
    pub fn submit(&self, request: JobRequest) {
        // It fails only after every worker ended because nobody takes results: then nobody waits for this one either.
        let _ = self.jobs.send(request);
    }
}

/// Runs a job; a panic of the library becomes that job's error, so that its owner is told and the thread lives.
fn run_caught(provider: &dyn Provider, job: Job) -> Done {
    let error = || CryptoError::Library("it panicked");
    let fallback = match &job {
        Job::DhGenerate { .. } => Done::DhKey(Err(error())),
        Job::DhAgree { .. } => Done::Shared(Err(error())),
        Job::DhRespond { .. } => Done::Responded(Err(error())),
        Job::Sign { .. } => Done::Signed(Err(error())),
        Job::Verify(_) => Done::Verified(Err(error())),
        Job::Phase1Sign { .. } => Done::Phase1Signed(Err(error())),
        Job::Phase1Verify(_) => Done::Phase1Verified(Err(error().into())),
        Job::MakeSigner { .. } | Job::LoadSigner { .. } => Done::Signer(Err(error())),
    };
    catch_unwind(AssertUnwindSafe(|| run(provider, job))).unwrap_or(fallback)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gdoi_proto::policy::SignatureAlgorithm;
    use gdoi_proto::secret::SecretBytes;
    use ike::crypto::provider::{DhKey, ProofSigner, Signer, Verification};
    use ike::crypto::{AuthMethod, DhGroup};
    use ike::io::JobId;

    /// Refuses everything, and panics when asked for a signing key.
    struct Clumsy;

    impl Provider for Clumsy {
        fn name(&self) -> &'static str {
            "clumsy"
        }
        fn fill(&self, out: &mut [u8]) {
            out.fill(0);
        }
        fn dh_generate(&self, _: DhGroup) -> Result<Box<dyn DhKey>, CryptoError> {
            Err(CryptoError::Library("no"))
        }
        fn dh_from_private(&self, _: DhGroup, _: &[u8]) -> Result<Box<dyn DhKey>, CryptoError> {
            Err(CryptoError::Library("no"))
        }
        fn generate_signing_key(&self, _: SignatureAlgorithm, _: u16) -> Result<SecretBytes, CryptoError> {
            panic!("as asked")
        }
        fn signer(&self, _: SignatureAlgorithm, _: &SecretBytes) -> Result<Arc<dyn Signer>, CryptoError> {
            Err(CryptoError::Library("no"))
        }
        fn verify(&self, _: &Verification) -> Result<(), CryptoError> {
            Ok(())
        }
        fn proof_signer(&self, _: AuthMethod, _: &SecretBytes) -> Result<Arc<dyn ProofSigner>, CryptoError> {
            Err(CryptoError::Library("no"))
        }
        fn verify_proof(&self, _: AuthMethod, _: &[u8], _: &[u8], _: &[u8]) -> Result<(), CryptoError> {
            Ok(())
        }
    }

    #[test]
    fn every_job_comes_back_under_its_id() {
        let (workers, mut results) = Workers::start(Arc::new(Clumsy), NonZeroUsize::new(3)).unwrap();
        for id in 0..50 {
            workers.submit(JobRequest { id: JobId(id), job: Job::DhGenerate { group: DhGroup::Modp2048 } });
        }
        let mut ids: Vec<u64> = (0..50).map(|_| results.blocking_recv().unwrap().id.0).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_of_the_library_is_that_jobs_error_and_the_next_job_runs() {
        let (workers, mut results) = Workers::start(Arc::new(Clumsy), NonZeroUsize::new(1)).unwrap();
        let job = Job::MakeSigner { algorithm: SignatureAlgorithm::Ecdsa256, key_bits: 256 };
        workers.submit(JobRequest { id: JobId(1), job });
        workers.submit(JobRequest { id: JobId(2), job: Job::DhGenerate { group: DhGroup::Modp2048 } });
        let first = results.blocking_recv().unwrap();
        assert!(matches!(first.done, Done::Signer(Err(CryptoError::Library("it panicked")))));
        assert_eq!(results.blocking_recv().unwrap().id, JobId(2));
    }

    #[test]
    fn dropping_the_pool_ends_the_threads_after_the_last_job() {
        let (workers, mut results) = Workers::start(Arc::new(Clumsy), NonZeroUsize::new(2)).unwrap();
        workers.submit(JobRequest { id: JobId(9), job: Job::DhGenerate { group: DhGroup::Modp2048 } });
        drop(workers);
        assert_eq!(results.blocking_recv().unwrap().id, JobId(9));
        assert!(results.blocking_recv().is_none());
    }
}
