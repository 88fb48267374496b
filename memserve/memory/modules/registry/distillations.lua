-- Distillations: jobs that make versions out of memories. Keys are in prelude.lua.
--
-- The newest one of each module is kept. A gateway works on a job that it holds, and renews its hold. Where
-- the hold has run out, another gateway takes the job up. A job ends once, with an event in the audit.
--
-- Fields of a job: job, principal, state, begun_s, ended_s ('' while it is under way), gateway, held_until,
-- taken_up, version (0: none); and JSON as text, which is not read here: asked, plan, progress, told (what
-- its end has told the audit), failure.

local ENDED_KEPT_S = 7 * 86400
local ENDED_MAX = 64
local RUNNING_MAX = 16

local function read_job(tenant, module)
  local text = redis.call('HGET', distillations_key(tenant), module)
  return text and cjson.decode(text) or nil
end

local function keep_job(tenant, module, job)
  redis.call('HSET', distillations_key(tenant), module, cjson.encode(job))
end

-- The job that the request names, where it is under way; else nil and what has become of it.
local function running_job(request)
  local job = read_job(request.tenant, request.module)
  if not job or job.job ~= request.job then return nil, 'gone' end
  if job.state ~= 'running' then return nil, job.state end
  return job, 'running'
end

-- Take the ended jobs away that are old, or too many. Returns how many are under way.
local function sweep_jobs(tenant)
  local running, ended = 0, {}
  for_each_field(distillations_key(tenant), function(module, text)
    local job = cjson.decode(text)
    if job.state == 'running' then
      running = running + 1
    else
      ended[#ended + 1] = {module = module, at_s = tonumber(job.ended_s) or 0}
    end
  end)
  table.sort(ended, function(first, second) return first.at_s > second.at_s end)
  for position, job in ipairs(ended) do
    if position > ENDED_MAX or job.at_s < NOW_S - ENDED_KEPT_S then
      redis.call('HDEL', distillations_key(tenant), job.module)
    end
  end
  return running
end

local function audit_job(request, before, after)
  before.job, after.job = request.job, request.job
  return audit.add_event(request, 'distil', request.module,
    before.state and cjson.encode(before) or '', cjson.encode(after))
end

-- End the job that is under way, and tell of it. request.told: a JSON object.
local function end_job(request, job, state)
  local told = cjson.decode(request.told)
  job.state, job.ended_s, job.held_until = state, NOW_TEXT, 0
  job.told, job.failure = cjson.encode(told), request.failure
  -- Its examples may be of a memory that was erased.
  if state ~= 'done' then job.plan = '' end
  keep_job(request.tenant, request.module, job)
  redis.call('SREM', DISTILLING_KEY, encode_names(request.tenant, request.module))
  told.state = state
  audit_job(request, {state = 'running'}, told)
end

-- request: tenant. Names and jobs in turn.
function sweeps.distillations(request)
  sweep_jobs(request.tenant)
  return redis.call('HGETALL', distillations_key(request.tenant))
end

-- request: tenant. Plans of jobs that have ended go: their examples have texts of memories. Answers how many.
function sweeps.forget_plans(request)
  local forgotten = 0
  for_each_field(distillations_key(request.tenant), function(module, text)
    local job = cjson.decode(text)
    if job.state ~= 'running' and job.plan ~= '' then
      job.plan = ''
      keep_job(request.tenant, module, job)
      forgotten = forgotten + 1
    end
  end)
  return forgotten
end

-- request: tenant, module. The job, or nothing.
function looks.distillation(request)
  return redis.call('HGET', distillations_key(request.tenant), request.module)
end

-- request: tenant, principal, module, job, asked, gateway, seconds. Answers the job of the module that is
-- under way: this one, or one that was there.
function changes.begin_distillation(request)
  local tenant, module = request.tenant, request.module
  local known = read_job(tenant, module)
  if known and known.state == 'running' then return {'unchanged', cjson.encode(known)} end
  if sweep_jobs(tenant) >= RUNNING_MAX then
    local rule = RUNNING_MAX .. ' distillations of this tenant are under way; wait for one, or stop one'
    return {'InvalidField', 'name', rule}
  end
  local job = {
    job = request.job, principal = request.principal, state = 'running', begun_s = NOW_TEXT, ended_s = '',
    gateway = request.gateway, held_until = NOW_S + tonumber(request.seconds), taken_up = 0, version = 0,
    asked = request.asked, plan = '', progress = '', told = '', failure = '',
  }
  keep_job(tenant, module, job)
  redis.call('SADD', DISTILLING_KEY, encode_names(tenant, module))
  audit_job(request, {}, {state = 'running'})
  return {'done', cjson.encode(job)}
end

-- request: tenant, module, job, gateway, seconds (0: the hold ends), plan, progress ('': as they are),
-- version. Answers `held`, or why the gateway must not go on: another state, `lost` to another gateway, or
-- `gone`.
function sweeps.hold_distillation(request)
  local job, state = running_job(request)
  if not job then return state end
  if job.gateway ~= request.gateway then return 'lost' end
  job.held_until = NOW_S + tonumber(request.seconds)
  if request.plan ~= '' then job.plan = request.plan end
  if request.progress ~= '' then job.progress = request.progress end
  job.version = math.max(job.version, tonumber(request.version))
  keep_job(request.tenant, request.module, job)
  return 'held'
end

-- Hold jobs whose hold has run out. request: gateway, seconds, limit. Tenants, modules and jobs in turn.
function sweeps.take_distillations(request)
  local taken = {}
  for _, names in ipairs(redis.call('SMEMBERS', DISTILLING_KEY)) do
    local tenant, module = decode_owner(names)
    local job = read_job(tenant, module)
    if not job or job.state ~= 'running' then
      redis.call('SREM', DISTILLING_KEY, names)
    elseif job.held_until < NOW_S and #taken < 3 * tonumber(request.limit) then
      job.gateway, job.held_until = request.gateway, NOW_S + tonumber(request.seconds)
      job.taken_up = job.taken_up + 1
      keep_job(tenant, module, job)
      for _, text in ipairs({tenant, module, cjson.encode(job)}) do taken[#taken + 1] = text end
    end
  end
  return taken
end

-- request: tenant, principal, module, job, state, told, failure. Answers whether it was under way.
function changes.end_distillation(request)
  local job = running_job(request)
  if not job then return {'unchanged', false} end
  end_job(request, job, request.state)
  return {'done', true}
end

-- request: tenant, principal, module, told, failure. Answers the job.
function changes.stop_distillation(request)
  local job = read_job(request.tenant, request.module)
  if not job or job.state ~= 'running' then
    return {'InvalidField', 'cancel', 'no distillation of ' .. request.module .. ' is under way'}
  end
  request.job = job.job
  end_job(request, job, 'stopped')
  return {'done', cjson.encode(job)}
end
