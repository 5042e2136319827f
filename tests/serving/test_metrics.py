"""Promises of the metrics: requests are counted, nothing that users wrote is kept."""

from tests.serving.app_server import Server


def test_metrics_count_requests_and_hold_nothing_that_users_wrote(server: Server) -> None:
    server.get("/v1/search", q="Geheimnis", language="de")
    server.get("/v1/search", q="Geheimnis", language="xx")
    server.get("/v1/Geheimnis")
    server.client.request("GEHEIMNIS", "/v1/search")
    text = server.get("/metrics").text
    assert "geheimnis" not in text.lower()
    line = (
        'mla_http_requests_total{method="GET",replica="local",route="/v1/search",status="200"} 1.0'
    )
    assert line in text
    assert 'mla_texts_encoded_total{language="de",replica="local"} 1.0' in text
