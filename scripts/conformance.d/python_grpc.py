"""nacos-sdk-python's gRPC client (module v2; 2.0.11 and 3.x), unmodified. See scripts/conformance.py for the protocol."""

import asyncio
import sys

from v2.nacos import (ClientConfigBuilder, DeregisterInstanceParam, BatchRegisterInstanceParam, ListInstanceParam,
                      ListServiceParam, NacosNamingService, RegisterInstanceParam, SubscribeServiceParam)

ADDRESS = sys.argv[1]
SERVICE = "python-grpc"


def ok(step):
    print(f"OK {step}", flush=True)


async def until(step, holds):
    # Both clients do again what a lost connection undid each 30 s.
    for _ in range(1800):
        value = holds()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return ok(step)
        await asyncio.sleep(0.05)
    sys.exit(f"not so: {step}")


async def end(client):
    try:
        await client.shutdown()
    except TypeError:
        # 2.0.11 awaits what is no future, once its connection is closed.
        pass


async def main():
    builder = ClientConfigBuilder().server_address(ADDRESS).namespace_id("conformance").log_dir("log")
    config = builder.build()
    config.load_cache_at_start = False
    client = await NacosNamingService.create_naming_service(config)
    other = await NacosNamingService.create_naming_service(config)
    pushed = []

    async def on_push(instances):
        pushed.append(sorted(i.port for i in instances))

    def param(port, **more):
        return RegisterInstanceParam(service_name=SERVICE, ip="127.0.0.1", port=port, metadata={"k": "v"}, **more)

    async def ports(client):
        found = await client.list_instances(ListInstanceParam(service_name=SERVICE, subscribe=False, healthy_only=None))
        return sorted(i.port for i in found)

    async def are(client, want):
        return await ports(client) == want

    async def kept(client):
        found = await client.list_instances(
            ListInstanceParam(service_name="python-kept", subscribe=False, healthy_only=None))
        return [i.port for i in found] == [1]

    assert await client.register_instance(param(1001))
    ok("register")
    assert await ports(other) == [1001]
    ok("list")
    subscription = SubscribeServiceParam(service_name=SERVICE, subscribe_callback=on_push)
    await other.subscribe(subscription)
    await client.batch_register_instances(
        BatchRegisterInstanceParam(service_name=SERVICE, instances=[param(1001), param(1002)]))
    await until("push: of a batch", lambda: pushed and pushed[-1] == [1001, 1002])
    persistent = param(1, ephemeral=False)
    persistent.service_name = "python-kept"
    assert await client.register_instance(persistent)
    ok("persist")
    services = await other.list_services(ListServiceParam(namespace_id="conformance", page_no=1, page_size=10))
    assert sorted(services.services) == [SERVICE, "python-kept"], services
    ok("list: services")
    print("RESTART", flush=True)
    sys.stdin.readline()
    # What a client subscribes to it lists from what it was told before.
    newcomer = await NacosNamingService.create_naming_service(config)
    await until("kept", lambda: kept(newcomer))
    await until("back: by itself, once", lambda: are(newcomer, [1001, 1002]))
    assert await newcomer.register_instance(param(1003))
    await until("push again", lambda: pushed and pushed[-1] == [1001, 1002, 1003])
    await end(newcomer)
    await until("push again: it is gone with its connection", lambda: pushed[-1] == [1001, 1002])
    assert await client.deregister_instance(
        DeregisterInstanceParam(service_name="python-kept", ip="127.0.0.1", port=1, ephemeral=False))
    await client.batch_deregister_instances(
        BatchRegisterInstanceParam(service_name=SERVICE, instances=[param(1002)]))
    await until("deregister", lambda: pushed[-1] == [1001])
    await other.unsubscribe(subscription)
    ok("deregister: the subscription")
    await end(client)
    await end(other)


asyncio.run(main())
