//! `ModelService`.

use super::Services;
use crate::domain::ModelId;
use crate::edge::auth::{Caller, KeyRole};
use crate::edge::status;
use crate::models::{Download, ModelReport, ModelState, ModelsError, Source};
use futures_util::Stream;
use futures_util::stream::unfold;
use local_worker::model::Inspection;
use local_worker::model::hub::Progress;
use sluice_proto::v1;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// Pause between two messages of a pull: faster is more than anyone reads.
const TELL_EVERY: Duration = Duration::from_millis(200);

type Told = Result<v1::PullModelResponse, Status>;

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn progress(progress: &Progress) -> v1::PullProgress {
    let (done_bytes, total_bytes) = (signed(progress.done_bytes), signed(progress.total_bytes));
    v1::PullProgress { file: progress.file.clone(), done_bytes, total_bytes }
}

/// A model as a caller may see it: where files lie on the machine is for those who run it.
fn model_status(report: &ModelReport, caller: &Caller) -> v1::ModelStatus {
    let admin = caller.may(KeyRole::Admin);
    let (state, problem, told) = match &report.state {
        ModelState::Available => (v1::ModelState::Available, "", None),
        ModelState::Downloadable => (v1::ModelState::Downloadable, "", None),
        ModelState::Downloading(told) => (v1::ModelState::Downloading, "", Some(progress(told))),
        ModelState::Loading => (v1::ModelState::Loading, "", None),
        ModelState::Loaded => (v1::ModelState::Loaded, "", None),
        ModelState::Failed(why) if admin => (v1::ModelState::Failed, why.as_str(), None),
        ModelState::Failed(_) => (v1::ModelState::Failed, "see the gateway's log", None),
    };
    v1::ModelStatus {
        name: report.id.to_string(),
        source: match &report.source {
            Source::Path(_) if !admin => "file".to_owned(),
            source => source.to_string(),
        },
        state: state.into(),
        problem: problem.to_owned(),
        memory_bytes: signed(report.memory_bytes),
        running: i32::try_from(report.running).unwrap_or(i32::MAX),
        progress: told,
        license: report.license.clone().unwrap_or_default(),
    }
}

fn details(report: &ModelReport, told: Inspection, caller: &Caller) -> v1::ModelDetails {
    let path = report.path.as_ref().filter(|_| caller.may(KeyRole::Admin));
    let loaded = report.info.as_ref();
    v1::ModelDetails {
        architecture: told.architecture,
        parameters: signed(told.parameters),
        quantization: told.quantization,
        context: loaded.map_or(i32::try_from(told.context).unwrap_or(i32::MAX), |info| info.context_length as i32),
        file_bytes: signed(told.file_bytes),
        weight_bytes: loaded.map_or(0, |info| signed(info.resident_bytes)),
        has_chat_template: told.has_chat_template,
        decline_text: told.decline_text.unwrap_or_default(),
        file_blake3: told.file_blake3,
        path: path.map(|path| path.display().to_string()).unwrap_or_default(),
        commit: report.commit.clone().unwrap_or_default(),
        load_seconds: loaded.map_or(0.0, |info| info.load_seconds),
        pack_seconds: loaded.map_or(0.0, |info| info.pack_seconds),
        kernels: loaded.map(|info| info.kernels.clone()).unwrap_or_default(),
    }
}

/// Reads a model's file, if it is here.
async fn inspection(report: &ModelReport) -> Option<Inspection> {
    let (path, bundled): (Option<PathBuf>, bool) = (report.path.clone(), report.source == Source::Bundled);
    let read = tokio::task::spawn_blocking(move || match path {
        Some(path) => Inspection::of(&path).ok(),
        None if bundled => Inspection::of_bundled().ok(),
        None => None,
    });
    read.await.ok().flatten()
}

impl Services {
    fn model(&self, name: &str, caller: &Caller) -> Result<v1::ModelStatus, Status> {
        let report = self.models.report(&ModelId::new(name)).map_err(|error| status::of_models(&error))?;
        Ok(model_status(&report, caller))
    }
}

#[tonic::async_trait]
impl v1::model_service_server::ModelService for Services {
    async fn list_models(
        &self,
        call: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let caller = self.any_caller(call.metadata())?;
        let models = self.models.reports().iter().map(|report| model_status(report, &caller)).collect();
        let (used, budget) = self.models.memory();
        let (memory_bytes, memory_budget_bytes) = (signed(used), budget.map(signed));
        Ok(Response::new(v1::ListModelsResponse { models, memory_bytes, memory_budget_bytes }))
    }

    async fn get_model(&self, call: Request<v1::GetModelRequest>) -> Result<Response<v1::GetModelResponse>, Status> {
        let caller = self.any_caller(call.metadata())?;
        let id = ModelId::new(call.into_inner().name);
        let report = self.models.report(&id).map_err(|error| status::of_models(&error))?;
        let told = inspection(&report).await;
        let mut model = model_status(&report, &caller);
        if let Some(license) = told.as_ref().and_then(|told| told.license.clone()).filter(|_| model.license.is_empty())
        {
            model.license = license;
        }
        // It names files, which are for those who run the gateway.
        if let Some(problem) = told.as_ref().and_then(|told| told.problem.clone())
            && model.problem.is_empty()
            && caller.may(KeyRole::Admin)
        {
            model.problem = problem;
        }
        let details = told.map(|told| details(&report, told, &caller));
        Ok(Response::new(v1::GetModelResponse { status: Some(model), details }))
    }

    type PullModelStream = Pin<Box<dyn Stream<Item = Told> + Send>>;

    async fn pull_model(&self, call: Request<v1::PullModelRequest>) -> Result<Response<Self::PullModelStream>, Status> {
        let caller = self.caller(call.metadata(), KeyRole::Admin)?;
        let name = call.into_inner().name;
        let download = self.models.pull(&ModelId::new(name.clone())).map_err(|error| status::of_models(&error))?;
        let services = self.clone();
        let end = move || services.model(&name, &caller);
        let state = Some((download, end, true));
        Ok(Response::new(Box::pin(unfold(state, |state| async move {
            let (mut download, end, first) = state?;
            match next(&mut download, first).await {
                Ok(Some(progress)) => {
                    let told = v1::PullModelResponse { progress: Some(progress), status: None };
                    Some((Ok(told), Some((download, end, false))))
                }
                Ok(None) => {
                    let told = end().map(|model| v1::PullModelResponse { progress: None, status: Some(model) });
                    Some((told, None))
                }
                Err(error) => Some((Err(error), None)),
            }
        }))))
    }

    async fn load_model(&self, call: Request<v1::LoadModelRequest>) -> Result<Response<v1::LoadModelResponse>, Status> {
        let caller = self.caller(call.metadata(), KeyRole::Admin)?;
        let name = call.into_inner().name;
        self.models.load(&ModelId::new(name.clone())).await.map_err(|error| status::of_models(&error))?;
        Ok(Response::new(v1::LoadModelResponse { status: Some(self.model(&name, &caller)?) }))
    }

    async fn unload_model(
        &self,
        call: Request<v1::UnloadModelRequest>,
    ) -> Result<Response<v1::UnloadModelResponse>, Status> {
        let caller = self.caller(call.metadata(), KeyRole::Admin)?;
        let name = call.into_inner().name;
        let unloaded = self.models.unload(&ModelId::new(name.clone())).await;
        let was_loaded = unloaded.map_err(|error| status::of_models(&error))?;
        Ok(Response::new(v1::UnloadModelResponse { status: Some(self.model(&name, &caller)?), was_loaded }))
    }
}

/// The next thing to tell of a download: how far it is, or `None` at its end.
async fn next(download: &mut watch::Receiver<Download>, first: bool) -> Result<Option<v1::PullProgress>, Status> {
    let is_running = |download: &Download| matches!(download, Download::Running(_));
    if !first {
        // The end is told at once, all between is not.
        let ended = download.wait_for(|download| !is_running(download));
        let _slow = tokio::time::timeout(TELL_EVERY, ended).await;
    }
    let gone = download.has_changed().is_err();
    match &*download.borrow_and_update() {
        Download::Running(_) if gone => Err(status::of_models(&ModelsError::Stopping)),
        Download::Running(told) => Ok(Some(progress(told))),
        Download::Done(_) => Ok(None),
        Download::Failed { why, passing } => Err(status::pull_failed(why, *passing)),
    }
}
