//! The client for a thread that computes: its own thread moves the bytes while the calling one waits or works.
//!
//! All of the network runs on one thread with a runtime of its own. Polling parts of it from the computing thread costs a
//! quarter more processor time a step, since packets then wake two threads.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread::JoinHandle;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use windlass_common::ids::{ClientId, WorkerId};
use windlass_common::plan::Plan;
use windlass_common::wire::WorkerReport;

use super::overlap::{Arrival, Arrivals, Coming, Done, Made};
use super::{Client, ClientError, Gradient, JoinOptions, Next, Taken, Work};

/// A worker's place in a run, for threads that compute. The methods are those of [`Client`], and wait.
#[derive(Debug)]
pub struct BlockingClient {
    plan: Plan,
    worker: WorkerId,
    values: usize,
    requests: mpsc::Sender<Request>,
    answers: std_mpsc::Receiver<Answer>,
    gradients: Vec<Gradient>,
    clients: Vec<ClientId>,
    hosted: Arc<[ClientId]>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Request {
    /// Without values, nothing is pulled.
    Exchange {
        push: Option<(Gradient, Work)>,
        values: Option<Vec<f32>>,
    },
    /// What is made is pushed as it comes, and values are handed on as they come; all of the answer goes the same way.
    InParts {
        work: Work,
        made: UnboundedReceiver<Made>,
        arrivals: Arrivals,
    },
    DropOut(ClientId),
    Leave(WorkerReport),
    Abort(String),
    Close,
}

#[derive(Debug)]
enum Answer {
    /// The request is done. The buffer of the values comes back, and one for the next gradient with it.
    Exchanged {
        result: Result<(Next, Taken), ClientError>,
        values: Option<Vec<f32>>,
        gradient: Gradient,
        clients: Vec<ClientId>,
        hosted: Arc<[ClientId]>,
    },
    Said(Result<(), ClientError>),
    Gone(Result<(), ClientError>),
}

impl BlockingClient {
    /// Joins a run, and returns when the coordinator has admitted this worker. Once `interrupted` resolves, this and
    /// every later request ends with [`ClientError::Interrupted`].
    ///
    /// # Errors
    /// As [`Client::join`], and if the system gives no thread.
    pub fn join(
        options: JoinOptions,
        interrupted: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Self, ClientError> {
        let (requests, incoming) = mpsc::channel(1);
        let (answer, answers) = std_mpsc::channel();
        let (joined, admitted) = std_mpsc::channel();
        let serve = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = joined.send(Err(ClientError::Thread(error)));
                    return;
                }
            };
            runtime.block_on(async move {
                let mut interrupted = std::pin::pin!(interrupted);
                let client = tokio::select! {
                    client = Client::join(options) => client,
                    () = interrupted.as_mut() => Err(ClientError::Interrupted),
                };
                match client {
                    Ok(mut client) => {
                        let (values, hosted) = (client.values().len(), client.hosted());
                        let _ = joined.send(Ok((client.plan().clone(), client.worker(), values, hosted)));
                        serve(client, incoming, answer, interrupted).await;
                    }
                    Err(error) => {
                        let _ = joined.send(Err(error));
                    }
                }
            });
        };
        let thread = std::thread::Builder::new().name("windlass-io".into()).spawn(serve);
        let thread = thread.map_err(ClientError::Thread)?;
        let (plan, worker, values, hosted) = admitted.recv().unwrap_or(Err(ClientError::Interrupted))?;
        Ok(Self {
            plan,
            worker,
            values,
            requests,
            answers,
            gradients: Vec::new(),
            clients: Vec::new(),
            hosted,
            thread: Some(thread),
        })
    }

    /// The run's configuration.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Which worker this is.
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// A buffer for the values of the whole model.
    pub fn values(&self) -> Vec<f32> {
        vec![0.0; self.values]
    }

    /// A buffer for a gradient of the whole model; what it holds is left from before.
    pub fn gradient(&mut self) -> Gradient {
        self.gradients.pop().unwrap_or_else(|| Gradient::new(self.values))
    }

    /// As [`Client::hosted`], as of the last request.
    pub fn hosted(&self) -> &Arc<[ClientId]> {
        &self.hosted
    }

    /// As [`Client::clients`].
    pub fn clients(&self) -> &[ClientId] {
        &self.clients
    }

    /// As [`Client::batch`].
    pub fn batch(&self, examples: u32, loss: f32) -> Work {
        Work { client: ClientId(self.worker.0), examples, work: examples.into(), loss }
    }

    /// As [`Client::pull`].
    ///
    /// # Errors
    /// As [`Client::pull`].
    pub fn pull(&mut self, values: &mut Vec<f32>) -> Result<Next, ClientError> {
        self.exchange(None, Some(values)).map(|(next, _)| next)
    }

    /// As [`Client::push`].
    ///
    /// # Errors
    /// As [`Client::push`].
    pub fn push(&mut self, gradient: Gradient, work: Work) -> Result<Taken, ClientError> {
        self.exchange(Some((gradient, work)), None).map(|(_, taken)| taken)
    }

    /// As [`Client::push_pull`].
    ///
    /// # Errors
    /// As [`Client::push_pull`].
    pub fn push_pull(
        &mut self,
        gradient: Gradient,
        work: Work,
        values: &mut Vec<f32>,
    ) -> Result<Next, ClientError> {
        self.exchange(Some((gradient, work)), Some(values)).map(|(next, _)| next)
    }

    /// As [`Client::drop_out`].
    ///
    /// # Errors
    /// As [`Client::drop_out`].
    pub fn drop_out(&mut self, client: ClientId) -> Result<(), ClientError> {
        self.requests.blocking_send(Request::DropOut(client)).map_err(|_| ClientError::Interrupted)?;
        match self.answers.recv() {
            Ok(Answer::Said(said)) => said,
            Ok(Answer::Exchanged { .. } | Answer::Gone(_)) | Err(_) => Err(ClientError::Interrupted),
        }
    }

    /// As [`Client::leave`].
    ///
    /// # Errors
    /// As [`Client::leave`].
    pub fn leave(self, report: WorkerReport) -> Result<(), ClientError> {
        self.go(Request::Leave(report))
    }

    /// As [`Client::abort`].
    ///
    /// # Errors
    /// As [`Client::abort`].
    pub fn abort(self, reason: String) -> Result<(), ClientError> {
        self.go(Request::Abort(reason))
    }

    /// As [`Client::close`].
    pub fn close(self) {
        // Closing cannot fail in a way that anybody could act upon.
        let _ = self.go(Request::Close);
    }

    /// Begins to push a gradient that is still being made, and to fetch the values for the next step: where to tell what is
    /// made, and what comes. Until [`done`](Self::done) nothing else can be asked for.
    pub(crate) fn push_pull_in_parts(
        &mut self,
        work: Work,
    ) -> Result<(UnboundedSender<Made>, Coming), ClientError> {
        let ((tell, made), (arrivals, coming)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let request = Request::InParts { work, made, arrivals };
        self.requests.blocking_send(request).map_err(|_| ClientError::Interrupted)?;
        Ok((tell, Coming::new(coming, self.plan.cluster.shards())))
    }

    /// Takes in how an exchange in parts ended.
    pub(crate) fn done(&mut self, done: Done) -> Result<Next, ClientError> {
        self.gradients.push(done.gradient);
        (self.clients, self.hosted) = (done.clients, done.hosted);
        done.result.map(|(next, _)| next)
    }

    fn exchange(
        &mut self,
        push: Option<(Gradient, Work)>,
        mut values: Option<&mut Vec<f32>>,
    ) -> Result<(Next, Taken), ClientError> {
        let request = Request::Exchange { push, values: values.as_mut().map(|v| std::mem::take(*v)) };
        self.requests.blocking_send(request).map_err(|_| ClientError::Interrupted)?;
        match self.answers.recv() {
            Ok(Answer::Exchanged { result, values: back, gradient, clients, hosted }) => {
                if let (Some(values), Some(back)) = (values, back) {
                    *values = back;
                }
                self.gradients.push(gradient);
                (self.clients, self.hosted) = (clients, hosted);
                result
            }
            Ok(Answer::Said(_) | Answer::Gone(_)) | Err(_) => Err(ClientError::Interrupted),
        }
    }

    fn go(mut self, request: Request) -> Result<(), ClientError> {
        let sent = self.requests.blocking_send(request);
        let gone = sent.map_err(|_| ClientError::Interrupted).and_then(|()| match self.answers.recv() {
            Ok(Answer::Gone(result)) => result,
            Ok(Answer::Exchanged { .. } | Answer::Said(_)) | Err(_) => Err(ClientError::Interrupted),
        });
        if let Some(thread) = self.thread.take() {
            // The thread has said its last word; what it still does is to close its socket.
            let _ = thread.join();
        }
        gone
    }
}

async fn serve(
    mut client: Client,
    mut requests: mpsc::Receiver<Request>,
    answer: std_mpsc::Sender<Answer>,
    mut interrupted: Pin<&mut impl Future<Output = ()>>,
) {
    let mut is_interrupted = false;
    while let Some(request) = requests.recv().await {
        let said = match request {
            Request::Exchange { push, mut values } => {
                let exchange = async {
                    match (push, &mut values) {
                        (Some((gradient, work)), Some(values)) => {
                            client.push_pull(gradient, work, values).await
                        }
                        (Some((gradient, work)), None) => {
                            client.push(gradient, work).await.map(|_| Next::Step(client.step()))
                        }
                        (None, Some(values)) => client.pull(values).await,
                        (None, None) => Ok(Next::Step(client.step())),
                    }
                };
                let result = unless(interrupted.as_mut(), &mut is_interrupted, exchange).await;
                let result = result.map(|next| (next, client.taken));
                let (gradient, clients) = (client.gradient(), client.clients().to_vec());
                let hosted = client.hosted();
                answer.send(Answer::Exchanged { result, values, gradient, clients, hosted })
            }
            Request::InParts { work, made, arrivals } => {
                let encoded = client.encoding;
                let exchange = client.push_pull_in_parts(work, made, &arrivals);
                let result = unless(interrupted.as_mut(), &mut is_interrupted, exchange).await;
                let result = result.map(|next| (next, client.taken));
                let (gradient, clients) = (client.gradient(), client.clients().to_vec());
                let (hosted, encoding) = (client.hosted(), client.encoding - encoded);
                let done = Done { result, gradient, clients, hosted, encoding };
                // Whoever has given its gradient up meanwhile asks for something else next.
                let _ = arrivals.send(Arrival::Done(done));
                Ok(())
            }
            Request::DropOut(gone) => answer.send(Answer::Said(client.drop_out(gone).await)),
            last => {
                let gone = match last {
                    Request::Leave(report) => client.leave(report).await,
                    Request::Abort(reason) => client.abort(reason).await,
                    Request::Close
                    | Request::Exchange { .. }
                    | Request::InParts { .. }
                    | Request::DropOut(_) => {
                        client.close().await;
                        Ok(())
                    }
                };
                let _ = answer.send(Answer::Gone(gone));
                return;
            }
        };
        if said.is_err() {
            return;
        }
    }
}

/// Carries on with an exchange, unless this process is or has been told to end.
async fn unless<T>(
    interrupted: Pin<&mut impl Future<Output = ()>>,
    is_interrupted: &mut bool,
    exchange: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::select! {
        biased;
        () = interrupted, if !*is_interrupted => {
            *is_interrupted = true;
            Err(ClientError::Interrupted)
        }
        result = exchange, if !*is_interrupted => result,
        else => Err(ClientError::Interrupted),
    }
}
