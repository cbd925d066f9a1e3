"""What a microservice in another language sees: nothing here knows more than the proto files say."""

import json
import threading
import time

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sluice.v1 import ask_pb2, decision_pb2, embed_pb2, gateway_pb2, policy_pb2, usage_pb2


def ask(prompt, **fields):
    part = ask_pb2.Part(text=prompt)
    message = ask_pb2.Message(role=ask_pb2.ROLE_USER, parts=[part])
    return ask_pb2.Ask(messages=[message], **fields)


def remote(prompt, **fields):
    return ask(prompt, placement=ask_pb2.PLACEMENT_REMOTE_ONLY, **fields)


def text(parts):
    return "".join(part.text for part in parts)


def details(error):
    """The details of a refused call by type name."""
    packed = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    status = status_pb2.Status.FromString(packed)
    assert status.code == error.code().value[0]
    found = {}
    known = {
        "google.rpc.BadRequest": error_details_pb2.BadRequest,
        "google.rpc.ErrorInfo": error_details_pb2.ErrorInfo,
        "google.rpc.RetryInfo": error_details_pb2.RetryInfo,
        "google.rpc.QuotaFailure": error_details_pb2.QuotaFailure,
        "sluice.v1.FailureReport": decision_pb2.FailureReport,
    }
    for detail in status.details:
        name = detail.type_url.rsplit("/", 1)[1]
        found[name] = known[name].FromString(detail.value)
    return found


def refused(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as caught:
        result = call(*arguments, **options)
        if hasattr(result, "__next__"):
            list(result)
    return caught.value


def test_unary_remote(gateway):
    request = gateway_pb2.CompleteRequest(ask=remote("What is the capital of Norway?"))
    before = len(gateway.bill()["rows"])
    response = gateway.stub.Complete(request, metadata=gateway.auth())
    assert "simulated" in text(response.parts)
    finished = response.finished
    assert finished.decision.route == decision_pb2.ROUTE_REMOTE
    assert finished.decision.policy_name and len(finished.decision.policy_hash) == 16
    assert finished.cost.basis == decision_pb2.COST_BASIS_REPORTED
    row = gateway.bill()["rows"][before:][-1]
    assert finished.cost.nano_usd == row["nano_usd"]
    assert finished.usage.output_tokens == row["completion_tokens"]


def test_streaming(gateway):
    request = gateway_pb2.StreamCompleteRequest(ask=remote("Tell me about fjords."))
    events = list(gateway.stub.StreamComplete(request, metadata=gateway.auth()))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started" and kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"delta"} and len(kinds) > 3
    assert "".join(event.delta.text for event in events) != ""
    assert events[-1].finished.finish_reason == decision_pb2.FINISH_REASON_STOP


def test_local_answer_is_free(gateway):
    request = gateway_pb2.CompleteRequest(
        ask=ask("Classify with the banking77 intents.\nI was charged twice.", placement=ask_pb2.PLACEMENT_LOCAL_ONLY)
    )
    response = gateway.stub.Complete(request, metadata=gateway.auth())
    assert text(response.parts)
    assert response.finished.decision.route == decision_pb2.ROUTE_LOCAL
    assert response.finished.cost.nano_usd == 0
    assert response.finished.usage.cpu_seconds > 0


INTENTS = ["card_payment_fee_charged", "transaction_charged_twice", "cancel_transfer"]
CHARGED_TWICE = "Classify with the banking77 intents.\nI was charged twice."


def formed(prompt, **form):
    fields = {"response_format": ask_pb2.ResponseFormat(**form), "placement": ask_pb2.PLACEMENT_LOCAL_ONLY}
    return gateway_pb2.CompleteRequest(ask=ask(prompt, **fields))


def test_json_of_a_schema(gateway):
    schema = {
        "type": "object",
        "properties": {"intent": {"enum": INTENTS}, "sure": {"type": "boolean"}},
        "required": ["intent", "sure"],
        "additionalProperties": False,
    }
    request = formed(CHARGED_TWICE, json_schema=json.dumps(schema))
    response = gateway.stub.Complete(request, metadata=gateway.auth())
    answer = json.loads(text(response.parts))
    assert list(answer) == ["intent", "sure"] and answer["intent"] in INTENTS and isinstance(answer["sure"], bool)
    assert response.finished.finish_reason == decision_pb2.FINISH_REASON_STOP
    assert 0 < response.finished.usage.output_tokens <= response.finished.max_tokens


def test_one_of_several_choices(gateway):
    request = formed(CHARGED_TWICE, choices=ask_pb2.Choices(texts=INTENTS))
    response = gateway.stub.Complete(request, metadata=gateway.auth())
    assert text(response.parts) == "transaction_charged_twice"


def test_forms_that_cannot_be_kept_are_refused_by_name(gateway):
    def field(request):
        error = refused(gateway.stub.Complete, request, metadata=gateway.auth())
        violation = details(error)["google.rpc.BadRequest"].field_violations[0]
        return error.code(), violation.field

    impossible = json.dumps({"type": "integer", "minimum": 5, "maximum": 4})
    wrong = grpc.StatusCode.INVALID_ARGUMENT
    assert field(formed("hello", json_schema=impossible)) == (wrong, "ask.response_format.json_schema")
    assert field(formed("hello", json_schema="[1]")) == (wrong, "ask.response_format.json_schema")
    assert field(formed("hello", regex="(a")) == (wrong, "ask.response_format.regex")
    request = formed(CHARGED_TWICE, choices=ask_pb2.Choices(texts=INTENTS))
    request.ask.limits.max_tokens = 2
    assert field(request) == (grpc.StatusCode.ABORTED, "ask.limits.max_tokens")
    request.ask.placement = ask_pb2.PLACEMENT_REMOTE_ONLY
    assert field(request) == (wrong, "ask.response_format.choices")


def test_tokens_are_told_with_their_alternatives(gateway):
    limits = ask_pb2.Limits(logprobs=2, temperature=0.0)
    fields = {"limits": limits, "placement": ask_pb2.PLACEMENT_LOCAL_ONLY}
    request = gateway_pb2.StreamCompleteRequest(ask=ask(CHARGED_TWICE, **fields))
    for _ in range(2):
        events = list(gateway.stub.StreamComplete(request, metadata=gateway.auth()))
        answer = "".join(event.delta.text for event in events)
        tokens = [token for event in events for token in event.delta.logprobs]
        assert b"".join(token.token for token in tokens).decode() == answer != ""
        for token in tokens:
            best = token.alternatives[0]
            assert len(token.alternatives) == 2 and best.token == token.token and best.logprob == token.logprob
            assert abs(best.logprob - token.alternatives[1].logprob - token.margin) < 1e-3
    plain = gateway_pb2.CompleteRequest(ask=ask(CHARGED_TWICE, placement=ask_pb2.PLACEMENT_LOCAL_ONLY))
    assert not gateway.stub.Complete(plain, metadata=gateway.auth()).logprobs


def test_local_only_decline_fails_closed(gateway):
    before = len(gateway.bill()["rows"])
    request = gateway_pb2.CompleteRequest(
        ask=ask("Outline a business plan for a bakery.", placement=ask_pb2.PLACEMENT_LOCAL_ONLY)
    )
    error = refused(gateway.stub.Complete, request, metadata=gateway.auth())
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert len(gateway.bill()["rows"]) == before


def test_explain_serves_nothing(gateway):
    before = len(gateway.bill()["rows"])
    request = gateway_pb2.ExplainRequest(ask=ask("Prove Fermat's little theorem."))
    response = gateway.stub.Explain(request, metadata=gateway.auth())
    assert len(response.decision.candidates) >= 2
    assert response.certificate
    assert len(gateway.bill()["rows"]) == before


def test_cache_hit_says_what_it_saved(gateway):
    limits = ask_pb2.Limits(temperature=0.0)
    request = gateway_pb2.CompleteRequest(ask=remote("A question for the cache.", limits=limits))
    first = gateway.stub.Complete(request, metadata=gateway.auth())
    second = gateway.stub.Complete(request, metadata=gateway.auth())
    assert second.finished.decision.route == decision_pb2.ROUTE_CACHE
    assert second.finished.cost.nano_usd == 0
    assert second.finished.saved_nano_usd == first.finished.cost.nano_usd
    assert text(first.parts) == text(second.parts)


def test_deadline(gateway):
    slow = gateway_pb2.CompleteRequest(ask=remote("wait {{sim:headers-ms-5000}}"))
    error = refused(gateway.stub.Complete, slow, metadata=gateway.auth(), timeout=0.5)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_cancel_reaches_the_upstream(gateway):
    request = gateway_pb2.StreamCompleteRequest(ask=remote("slow {{sim:token-ms-200}} please"))
    call = gateway.stub.StreamComplete(request, metadata=gateway.auth())
    request_id = None
    for event in call:
        if event.WhichOneof("event") == "started":
            request_id = event.started.request_id
        if event.WhichOneof("event") == "delta":
            break
    call.cancel()
    entry = wait_for_entry(gateway, request_id)
    assert entry.status == "cancelled"
    assert entry.attempts[0].status == "cancelled"
    assert entry.cost.nano_usd > 0


def wait_for_entry(gateway, entry_id):
    give_up = time.monotonic() + 10
    while True:
        try:
            request = gateway_pb2.ExplainRequest(entry_id=entry_id)
            return gateway.stub.Explain(request, metadata=gateway.auth()).entry
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND
            assert time.monotonic() < give_up, "the entry never appeared"
            time.sleep(0.1)


@pytest.mark.parametrize(
    "bad, field",
    [
        (ask_pb2.Ask(), "ask.messages"),
        (ask("x", limits=ask_pb2.Limits(max_tokens=-1)), "ask.limits.max_tokens"),
        (ask("x", limits=ask_pb2.Limits(temperature=9)), "ask.limits.temperature"),
        (ask("x", limits=ask_pb2.Limits(top_p=0)), "ask.limits.top_p"),
        (ask("x", policy="nonsense"), "ask.policy"),
        (ask("x", tools=[ask_pb2.Tool(name="f")]), "ask.tools"),
        (ask(""), "ask.messages[0].parts[0]"),
    ],
)
def test_bad_input_is_named(gateway, bad, field):
    error = refused(gateway.stub.Complete, gateway_pb2.CompleteRequest(ask=bad), metadata=gateway.auth())
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    violations = details(error)["google.rpc.BadRequest"].field_violations
    assert any(violation.field.startswith(field) for violation in violations), violations


def test_contradictory_placements(gateway):
    request = gateway_pb2.CompleteRequest(ask=remote("x", labels={"data_class": "restricted"}))
    error = refused(gateway.stub.Complete, request, metadata=gateway.auth())
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_ten_megabyte_prompt(gateway):
    request = gateway_pb2.CompleteRequest(ask=ask("x" * (10 << 20)))
    error = refused(gateway.stub.Complete, request, metadata=gateway.auth())
    assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE), error


def test_budget_exhausted(gateway):
    request = gateway_pb2.CompleteRequest(ask=remote("Too dear for this tenant."))
    error = refused(gateway.stub.Complete, request, metadata=gateway.auth("poor"))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    found = details(error)
    assert found["google.rpc.QuotaFailure"].violations[0].subject
    assert found["sluice.v1.FailureReport"].cost.nano_usd == 0


def test_keys(gateway):
    request = gateway_pb2.CompleteRequest(ask=ask("x"))
    for metadata in ([], [("authorization", "Bearer wrong")]):
        error = refused(gateway.stub.Complete, request, metadata=metadata)
        assert error.code() == grpc.StatusCode.UNAUTHENTICATED
    error = refused(gateway.stub.Complete, request, metadata=gateway.auth("usage"))
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED
    balanced = gateway_pb2.CompleteRequest(ask=ask("x", policy="balanced"))
    error = refused(gateway.stub.Complete, balanced, metadata=gateway.auth("frugal_only"))
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED


def test_feedback(gateway):
    request = gateway_pb2.CompleteRequest(ask=remote("Judge me."))
    entry_id = gateway.stub.Complete(request, metadata=gateway.auth()).request_id
    wait_for_entry(gateway, entry_id)
    feedback = gateway_pb2.SubmitFeedbackRequest(
        entry_id=entry_id, source=gateway_pb2.FEEDBACK_SOURCE_USER, value=0.5
    )
    outcomes = [gateway.stub.SubmitFeedback(feedback, metadata=gateway.auth()).outcome for _ in range(2)]
    assert outcomes == [gateway_pb2.FEEDBACK_OUTCOME_RECORDED, gateway_pb2.FEEDBACK_OUTCOME_UNCHANGED]
    feedback.value = 0.75
    assert gateway.stub.SubmitFeedback(feedback, metadata=gateway.auth()).outcome == gateway_pb2.FEEDBACK_OUTCOME_UPDATED
    error = refused(gateway.stub.SubmitFeedback, feedback, metadata=gateway.auth("poor"))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    feedback.value = 7
    error = refused(gateway.stub.SubmitFeedback, feedback, metadata=gateway.auth())
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_usage_adds_up(gateway):
    entries = []
    request = usage_pb2.ListEntriesRequest(page_size=3)
    while True:
        page = gateway.usage.ListEntries(request, metadata=gateway.auth())
        entries.extend(page.entries)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert len({entry.id for entry in entries}) == len(entries) > 3
    times = [entry.received_unix_ms for entry in entries]
    assert times == sorted(times, reverse=True)
    rows = gateway.usage.Summarize(
        usage_pb2.SummarizeRequest(group_by=usage_pb2.GROUP_BY_ROUTE), metadata=gateway.auth()
    ).rows
    assert sum(row.requests for row in rows) == len(entries)
    assert sum(cost.nano_usd for row in rows for cost in row.cost) == sum(entry.cost.nano_usd for entry in entries)


def test_policy_service(gateway):
    listed = gateway.policies.List(policy_pb2.ListRequest(), metadata=gateway.auth()).policies
    assert {"balanced", "frugal", "quality"} <= {policy.name for policy in listed}
    got = gateway.policies.Get(policy_pb2.GetRequest(name="balanced"), metadata=gateway.auth())
    good = gateway.policies.Check(policy_pb2.CheckRequest(text=got.text), metadata=gateway.auth())
    assert not good.problems
    bad = 'name = "x"\nspeling = 1\n[objective]\ngoal = "min-cots"\n'
    problems = gateway.policies.Check(policy_pb2.CheckRequest(text=bad), metadata=gateway.auth()).problems
    assert {2, 4} <= {problem.line for problem in problems}
    assert all(problem.column > 0 and problem.message for problem in problems)


def test_health(gateway):
    stub = health_pb2_grpc.HealthStub(gateway.channel)
    status = stub.Check(health_pb2.HealthCheckRequest(service="sluice.v1.GatewayService")).status
    assert status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(gateway, version):
    method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    call = gateway.channel.stream_stream(
        method,
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(call(iter([request])))
    names = {service.name for service in answer.list_services_response.service}
    own = {"sluice.v1.GatewayService", "sluice.v1.UsageService", "sluice.v1.PolicyService", "sluice.v1.ModelService"}
    assert own <= names


def test_a_call_by_reflection_alone(gateway):
    from google.protobuf import descriptor_pool, message_factory
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(gateway.channel))
    method = pool.FindServiceByName("sluice.v1.GatewayService").FindMethodByName("Complete")
    request_class = message_factory.GetMessageClass(method.input_type)
    response_class = message_factory.GetMessageClass(method.output_type)
    request = request_class()
    message = request.ask.messages.add()
    message.role = 2
    message.parts.add().text = "By reflection alone."
    request.ask.placement = 5
    call = gateway.channel.unary_unary(
        "/sluice.v1.GatewayService/Complete",
        request_serializer=request_class.SerializeToString,
        response_deserializer=response_class.FromString,
    )
    assert call(request, metadata=gateway.auth()).parts[0].text


def test_many_at_once(gateway):
    results = []

    def one(index):
        request = gateway_pb2.CompleteRequest(ask=remote(f"Number {index}"))
        results.append(gateway.stub.Complete(request, metadata=gateway.auth()).request_id)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 32


def test_vectors_of_texts(gateway):
    texts = ["I was charged twice.", "My card was debited two times.", "Where is the nearest museum?"]
    told = gateway.stub.Embed(embed_pb2.EmbedRequest(texts=texts), metadata=gateway.auth())
    rows = [list(vector.values) for vector in told.vectors]
    assert [len(row) for row in rows] == [told.dimensions] * 3
    cosine = lambda left, right: sum(a * b for a, b in zip(left, right))
    assert all(abs(cosine(row, row) - 1) < 1e-4 for row in rows)
    assert cosine(rows[0], rows[1]) > cosine(rows[0], rows[2])
    again = gateway.stub.Embed(embed_pb2.EmbedRequest(texts=texts[:1]), metadata=gateway.auth())
    assert list(again.vectors[0].values) == rows[0] and again.version == told.version
    error = refused(gateway.stub.Embed, embed_pb2.EmbedRequest(texts=["a", " "]), metadata=gateway.auth())
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(error)["google.rpc.BadRequest"].field_violations[0].field == "texts[1]"
    error = refused(gateway.stub.Embed, embed_pb2.EmbedRequest(texts=["a"]))
    assert error.code() == grpc.StatusCode.UNAUTHENTICATED


def test_cut_after_the_first_byte(gateway):
    request = gateway_pb2.StreamCompleteRequest(ask=remote("cut {{sim:cut-3}} me off in the middle of it"))
    seen = []
    with pytest.raises(grpc.RpcError) as caught:
        for event in gateway.stub.StreamComplete(request, metadata=gateway.auth()):
            seen.append(event.WhichOneof("event"))
    assert caught.value.code() == grpc.StatusCode.ABORTED
    assert "delta" in seen and "finished" not in seen
    assert details(caught.value)["sluice.v1.FailureReport"].request_id


def test_remote_down(gateway):
    request = gateway_pb2.CompleteRequest(ask=remote("fail {{sim:status-503}} now"))
    error = refused(gateway.stub.Complete, request, metadata=gateway.auth())
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "google.rpc.RetryInfo" in details(error)


def test_zz_an_open_breaker_is_said_and_can_be_retried(gateway):
    """Last, because it leaves the breaker of the only target open."""
    for _ in range(80):
        request = gateway_pb2.CompleteRequest(ask=remote("fail {{sim:status-503}} again"))
        error = refused(gateway.stub.Complete, request, metadata=gateway.auth())
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert "google.rpc.RetryInfo" in details(error)
        if "breaker" in error.details():
            return
    pytest.fail("the breaker never opened")
