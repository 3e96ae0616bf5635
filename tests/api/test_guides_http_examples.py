"""The guide's own HTTP examples, as they are written there but for the port.

Their `httpx` is httpx2, its maintained fork, under that name.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from agentmgr.manager import AgentManager

CURL = """
curl http://localhost:8080/api/v1/info
curl http://localhost:8080/api/v1/services
curl -X POST http://localhost:8080/api/v1/services \
  -H "Content-Type: application/json" \
  -d '{
    "name": "my-service",
    "agent_factory_path": "./my_agent.py",
    "description": "My test service",
    "tags": ["test"],
    "auto_start": true,
    "max_sessions": 10
  }'
curl -X POST http://localhost:8080/api/v1/services/{service_id}/start
curl http://localhost:8080/api/v1/services/{service_id}/stats
curl http://localhost:8080/api/v1/stats
"""


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_curl_lines(
    url: str, manager: AgentManager, agent_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(agent_file).rename(tmp_path / "my_agent.py")
    monkeypatch.chdir(tmp_path)  # a relative path is relative to the manager's directory
    lines = ["curl" + text for text in CURL.replace("http://localhost:8080", url).split("curl")[1:]]
    answers: list[Any] = []
    for line in lines:
        if "{service_id}" in line:
            line = line.replace("{service_id}", answers[2]["service_id"])
        done = await trio.run_process(
            ["sh", "-c", f"{line.strip()} --silent --fail-with-body"], capture_stdout=True, check=False
        )
        assert done.returncode == 0, done.stdout
        answers.append(json.loads(done.stdout))
    info, services, service, started, stats, system = answers
    assert info["version"]
    assert services["items"] == []
    assert (service["name"], service["config"]["max_sessions"]) == ("my-service", 10)
    assert started["desired_status"] == "running"
    assert stats["name"] == "my-service"
    assert system["services"]["total"] == 1


HTTPX = """
import asyncio
import httpx

async def api_example():
    async with httpx.AsyncClient() as client:
        # 获取系统信息
        response = await client.get("http://localhost:8080/api/v1/info")
        print("System info:", response.json())
        
        # 创建服务
        service_data = {
            "name": "test-service",
            "agent_factory_path": "./my_agent.py",
            "description": "Test service",
            "tags": ["test"],
            "auto_start": True
        }
        response = await client.post(
            "http://localhost:8080/api/v1/services",
            json=service_data
        )
        service = response.json()
        service_id = service["service_id"]
        
        # 获取服务状态
        response = await client.get(f"http://localhost:8080/api/v1/services/{service_id}")
        print("Service status:", response.json()["status"])
        
        # 获取健康检查
        response = await client.get(f"http://localhost:8080/api/v1/services/{service_id}/health")
        print("Health check:", response.json()["status"])

if __name__ == "__main__":
    asyncio.run(api_example())
"""  # noqa: W293


async def test_the_httpx_example(
    url: str, agent_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(agent_file).rename(tmp_path / "my_agent.py")
    monkeypatch.chdir(tmp_path)
    patient = HTTPX.replace("AsyncClient()", "AsyncClient(timeout=60)")
    Path("example.py").write_text(patient.replace("http://localhost:8080", url))
    Path("httpx.py").write_text("from httpx2 import *\n")
    done = await trio.run_process([sys.executable, "example.py"], capture_stdout=True)
    said = done.stdout.decode()
    assert "System info: {" in said
    assert "Service status: st" in said or "Service status: running" in said
    assert "Health check: " in said
    async with httpx2.AsyncClient(timeout=60) as http:
        assert (await http.get(f"{url}/health")).json()["status"] == "healthy"
