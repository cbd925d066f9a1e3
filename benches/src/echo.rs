//! An exact cache hit over gRPC against a bare tonic server that answers the same call with a constant.

use crate::house::{House, remote};
use crate::median;
use futures_util::future::try_join_all;
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::time::Instant;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

const ROUNDS: usize = 7;
const CALLS: usize = 400;

struct Echo;

type NoStream = tokio_stream::Empty<Result<v1::StreamCompleteResponse, Status>>;

#[tonic::async_trait]
impl v1::gateway_service_server::GatewayService for Echo {
    type StreamCompleteStream = NoStream;

    async fn complete(&self, request: Request<v1::CompleteRequest>) -> Result<Response<v1::CompleteResponse>, Status> {
        let messages = request.into_inner().ask.map(|ask| ask.messages).unwrap_or_default();
        let parts = messages.into_iter().next().map(|message| message.parts).unwrap_or_default();
        Ok(Response::new(v1::CompleteResponse { parts, ..v1::CompleteResponse::default() }))
    }

    async fn stream_complete(&self, _: Request<v1::StreamCompleteRequest>) -> Result<Response<NoStream>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    async fn explain(&self, _: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    async fn embed(&self, _: Request<v1::EmbedRequest>) -> Result<Response<v1::EmbedResponse>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    async fn submit_feedback(
        &self,
        _: Request<v1::SubmitFeedbackRequest>,
    ) -> Result<Response<v1::SubmitFeedbackResponse>, Status> {
        Err(Status::unimplemented("an echo"))
    }
}

/// Microseconds of each call, and calls a second, with `in_flight` callers.
async fn drive(client: &Client, in_flight: usize) -> anyhow::Result<(f64, f64)> {
    let clock = Instant::now();
    let callers = (0..in_flight).map(|_| {
        let mut client = client.clone();
        async move {
            let mut latencies = Vec::new();
            for _ in 0..CALLS / in_flight {
                let clock = Instant::now();
                let ask = Some(remote("A question that was asked before.", 0.0));
                client.gateway.complete(v1::CompleteRequest { ask }).await?;
                latencies.push(clock.elapsed().as_secs_f64() * 1e6);
            }
            anyhow::Ok(latencies)
        }
    });
    let mut latencies: Vec<f64> = try_join_all(callers).await?.into_iter().flatten().collect();
    let rate = latencies.len() as f64 / clock.elapsed().as_secs_f64();
    Ok((median(&mut latencies), rate))
}

pub async fn run(house: &House) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    let server = tonic::transport::Server::builder()
        .add_service(v1::gateway_service_server::GatewayServiceServer::new(Echo))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let server = tokio_util::task::TaskTracker::new().spawn(server);
    let echo = Client::connect(&address, None, None).await?;
    drive(&house.client, 1).await?;
    println!("## Exact cache hit over gRPC against a bare tonic echo\n");
    println!("| in flight | hit, median µs | echo, median µs | ratio | hits/s | echoes/s | ratio |");
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for in_flight in [1, 16] {
        let mut columns: [Vec<f64>; 6] = Default::default();
        for _ in 0..ROUNDS {
            let (hit, hits) = drive(&house.client, in_flight).await?;
            let (bare, echoes) = drive(&echo, in_flight).await?;
            for (column, value) in columns.iter_mut().zip([hit, bare, hit / bare, hits, echoes, hits / echoes]) {
                column.push(value);
            }
        }
        let [hit, bare, ratio, hits, echoes, rates] = columns.map(|mut column| median(&mut column));
        println!("| {in_flight} | {hit:.0} | {bare:.0} | {ratio:.2} | {hits:.0} | {echoes:.0} | {rates:.2} |");
    }
    println!();
    server.abort();
    Ok(())
}
