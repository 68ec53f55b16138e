// npm nacos, unmodified: HTTP v1, told of changes by UDP. See scripts/conformance.py.
'use strict';
const { NacosNamingClient } = require('nacos');
const readline = require('readline');

const service = 'node-http';
const logger = { ...console, info() {}, debug() {}, warn() {}, log() {} };
const ok = step => process.stdout.write(`OK ${step}\n`);
const until = async (step, holds) => {
  for (let i = 0; i < 600; i++) {
    if (await Promise.resolve(holds()).catch(() => false)) return ok(step);
    await new Promise(done => setTimeout(done, 50));
  }
  throw new Error(`not so: ${step}`);
};

async function main() {
  const client = new NacosNamingClient({ logger, serverList: process.argv[2], namespace: 'conformance' });
  const other = new NacosNamingClient({ logger, serverList: process.argv[2], namespace: 'conformance' });
  await client.ready();
  await other.ready();
  const instance = (port, more) => ({ ip: '127.0.0.1', port, metadata: { k: 'v' }, ...more });
  const ports = async () => (await client.getAllInstances(service, 'DEFAULT_GROUP', 'DEFAULT', false)).map(h => h.port).sort();
  let pushed = [];
  await client.registerInstance(service, instance(1001));
  ok('register');
  await until('list', async () => (await ports()).join() === '1001');
  other.subscribe(service, hosts => pushed.push(hosts.map(h => Number(h.port)).sort().join()));
  await until('push: how it is', () => pushed.at(-1) === '1001');
  await client.registerInstance(service, instance(1002));
  await until('push: of another', () => pushed.at(-1) === '1001,1002');
  await client.deregisterInstance(service, instance(1002));
  await until('push: of its end', () => pushed.at(-1) === '1001');
  await client.registerInstance('node-kept', instance(1, { ephemeral: false }));
  ok('persist');
  process.stdout.write('RESTART\n');
  await new Promise(done => readline.createInterface({ input: process.stdin }).once('line', done));
  await until('back: by its beats', async () => (await ports()).join() === '1001');
  const kept = await client.getAllInstances('node-kept', 'DEFAULT_GROUP', 'DEFAULT', false);
  if (kept.map(h => Number(h.port)).join() !== '1') throw new Error('not so: kept');
  ok('kept');
  pushed = [];
  await client.registerInstance(service, instance(1003));
  await until('push again', () => pushed.at(-1) === '1001,1003');
  await client.deregisterInstance('node-kept', instance(1, { ephemeral: false }));
  await client.deregisterInstance(service, instance(1003));
  await client.deregisterInstance(service, instance(1001));
  ok('deregister');
  process.exit(0);
}

main().catch(error => { console.error(error); process.exit(1); });
