-- Preloads: versions that workers load when they start. Keys are in prelude.lua.
--
-- Each preload is twice: in the set of its version, and in the hash of all, which workers read.

-- After an outage of this Redis no worker has a lease until it has renewed it.
local WORKER_GONE_S = 3600

local function preload_field(tenant, module, number, worker)
  return owner(tenant, module, number .. ':' .. worker)
end

-- Whether the worker has a lease. '' stands for every worker.
local function is_alive(worker)
  return worker == '' or redis.call('EXISTS', 'memserve:worker:' .. worker) == 1
end

-- The ids of the workers that load the version when they start.
function preloads.workers(tenant, module, number)
  return redis.call('SMEMBERS', preloaded_key(tenant, module, number))
end

function preloads.remove(tenant, module, number, workers)
  for _, worker in ipairs(workers) do
    redis.call('SREM', preloaded_key(tenant, module, number), worker)
    redis.call('HDEL', PRELOADS_KEY, preload_field(tenant, module, number, worker))
  end
end

-- Who preloads the version, for a person; or nil.
function preloads.user_of(tenant, module, number)
  for _, worker in ipairs(preloads.workers(tenant, module, number)) do
    if is_alive(worker) then return 'a preload' end
  end
  return nil
end

local function workers_json(tenant, module, number)
  local workers = preloads.workers(tenant, module, number)
  table.sort(workers)
  for position, worker in ipairs(workers) do workers[position] = cjson.encode(worker) end
  return '[' .. table.concat(workers, ',') .. ']'
end

-- workers_before: workers_json() before the change.
local function audit_preload(request, action, workers_before)
  local tenant, module, number = request.tenant, request.module, request.number
  local function audit_text(workers)
    local worker = cjson.encode(request.worker)
    return '{"version":' .. number .. ',"worker_id":' .. worker .. ',"preloaded_on":' .. workers .. '}'
  end
  local workers_after = workers_json(tenant, module, number)
  audit.add_event(request, action, module, audit_text(workers_before), audit_text(workers_after))
end

-- The preloads of workers that are alive. Those of workers that have been gone for long are taken away: no
-- worker gets a name that another had.
function sweeps.preloads()
  local of_live_workers = {}
  for_each_field(PRELOADS_KEY, function(field, text)
    local preload = cjson.decode(text)
    local worker_is_alive, gone_before = is_alive(preload.worker_id), preload.gone
    preload.gone = nil
    if not worker_is_alive then preload.gone = gone_before or NOW_S end
    if preload.gone ~= gone_before then redis.call('HSET', PRELOADS_KEY, field, cjson.encode(preload)) end
    if worker_is_alive then
      of_live_workers[#of_live_workers + 1] = text
    elseif preload.gone < NOW_S - WORKER_GONE_S then
      local tenant, module, rest = decode_owner(field)
      preloads.remove(tenant, module, string.match(rest, '^%d+'), {preload.worker_id})
    end
  end)
  return of_live_workers
end

-- request: tenant, principal, module, number, worker ('' for every worker).
function changes.preload(request)
  local tenant, module, number, worker = request.tenant, request.module, request.number, request.worker
  if not versions.is_usable(tenant, module, number) then
    return {'ModuleNotFound', reference(module, number)}
  end
  local body = versions.body(tenant, module, number)
  local workers_before = workers_json(tenant, module, number)
  redis.call('SADD', preloaded_key(tenant, module, number), worker)
  redis.call('HSET', PRELOADS_KEY, preload_field(tenant, module, number, worker),
    cjson.encode({digest = body.digest, kind = body.kind, worker_id = worker}))
  audit_preload(request, 'preload', workers_before)
  return {'done'}
end

-- request: tenant, principal, module, number, worker ('' takes all preloads of the version away).
function changes.unload(request)
  local tenant, module, number, worker = request.tenant, request.module, request.number, request.worker
  if not versions.exists(tenant, module, number) then return {'ModuleNotFound', reference(module, number)} end
  local workers_before = workers_json(tenant, module, number)
  local workers = worker == '' and preloads.workers(tenant, module, number) or {worker}
  preloads.remove(tenant, module, number, workers)
  audit_preload(request, 'unload', workers_before)
  return {'done'}
end
