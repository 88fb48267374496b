-- The module store: a tenant's modules, their versions and aliases, the audit, and what workers load when they start.
-- Each script is one atomic change together with its audit event, or one consistent look.
--
-- ARGV: the script's name, the call's id ("" for a look), the script's arguments. Tenants, names and aliases stand in keys as
-- <length>:<text>, so that none can reach into another's.
--
--   names:T, names:T<kind>   sorted sets, all of score 0: the modules that have versions
--   head:TN                  hash: kind, last (the highest number ever given)
--   numbers:TN               sorted set: the numbers of the versions that there are
--   versions:TN              hash: v:<n> the version, which never changes; g:<n> gate report; m:<n> it moves logits; h:<n> held
--   aliases:TN               hash by alias: {revision, origin, targets, changed_s}
--   history:TNA              list of {revision, origin, targets, at_s, principal, action, reason, forced}; revision r is at r - 1
--   references:<digest>      set of TN<n>, of the version's weights and of its probes
--   condemned:<digest>       string: by whom, until it expires;  claims:<digest>  sorted set of publishers' tokens by when they end
--   preloaded:TN<n>          set of worker ids, "" for every worker;  preloads  hash of all by TN<n>worker
--   events:T                 stream, never trimmed
--   done:<call>              what a change answered, for a call that is sent again because its connection broke
--
-- `origin` is the revision that first had these targets: what the alias was before them is at revision origin - 1, however many
-- rollbacks came since. Times and targets are kept as text: cjson would round their numbers.
-- A change answers {"done", ...}, or an error's class and its arguments.

local P = 'memserve:module:'
local ALIASES_MAX = 256
local ROLLBACK_STEPS = 1000
local DONE_MS = 10000
-- Redis's own clock: those of the gateways differ.
local TIME = redis.call('TIME')
local NOW = tonumber(TIME[1]) + tonumber(TIME[2]) / 1e6
local STAMP = string.format('%d.%06d', TIME[1], TIME[2])

local function spelled(...)
  local parts = {...}
  for at, text in ipairs(parts) do parts[at] = #text .. ':' .. text end
  return table.concat(parts)
end

local function key(kind, ...) return P .. kind .. ':' .. spelled(...) end

local function reference(name, n) return name .. '@' .. n end

local function owner(tenant, name, n) return spelled(tenant, name) .. n end

local function audit(tenant, principal, action, module, before, after)
  return redis.call('XADD', key('events', tenant), '*', 'at_s', STAMP, 'principal', principal, 'action', action, 'module', module,
    'before', before, 'after', after)
end

-- The version, its gate report, and whether it moves logits; the first is false where there is none.
local function stored(tenant, name, n)
  return redis.call('HMGET', key('versions', tenant, name), 'v:' .. n, 'g:' .. n, 'm:' .. n)
end

local function exists(tenant, name, n) return redis.call('HEXISTS', key('versions', tenant, name), 'v:' .. n) == 1 end

-- Whose mark is on the version.
local function holder(tenant, name, n)
  local mark = redis.call('HGET', key('versions', tenant, name), 'h:' .. n)
  if not mark then return nil end
  mark = cjson.decode(mark)
  return mark.ends > NOW and mark.token or nil
end

local function usable(tenant, name, n) return exists(tenant, name, n) and not holder(tenant, name, n) end

-- The digests of what a version consists of.
local function parts_of(v) return v.probes_digest ~= '' and {v.digest, v.probes_digest} or {v.digest} end

local function unclaim(token, digests)
  for _, digest in ipairs(digests) do redis.call('ZREM', P .. 'claims:' .. digest, token) end
end

-- One of the digests that is condemned or, with a token, that this no longer claims; or nil.
local function lost(token, digests)
  for _, digest in ipairs(digests) do
    local ends = tonumber(token ~= '' and redis.call('ZSCORE', P .. 'claims:' .. digest, token) or 0)
    if redis.call('EXISTS', P .. 'condemned:' .. digest) == 1 or token ~= '' and ends <= NOW then return digest end
  end
  return nil
end

local function brief(version)
  local v = cjson.decode(version)
  return cjson.encode({version = v.version, digest = v.digest, kind = v.kind, probes_digest = v.probes_digest})
end

local function alias_of(tenant, name, alias)
  local text = redis.call('HGET', key('aliases', tenant, name), alias)
  return text and cjson.decode(text) or nil
end

local function targets_version(targets, n)
  for _, share in ipairs(cjson.decode(targets)) do
    if share.version == tonumber(n) then return true end
  end
  return false
end

-- An alias as JSON. more: further fields, in text.
local function shown(alias, a, more)
  return '{"name":' .. cjson.encode(alias) .. ',"targets":' .. a.targets .. ',"revision":' .. a.revision .. ',"changed_s":' .. a.changed_s
    .. (more or '') .. '}'
end

local function user_of(tenant, name, n)
  local aliases = redis.call('HGETALL', key('aliases', tenant, name))
  for at = 1, #aliases, 2 do
    if targets_version(cjson.decode(aliases[at + 1]).targets, n) then return 'alias ' .. aliases[at] end
  end
  return redis.call('EXISTS', key('preloaded', tenant, name) .. n) == 1 and 'a preload' or nil
end

-- Name, kind, newest version, number of versions, aliases; or false.
local function described(tenant, name)
  local newest = redis.call('ZREVRANGE', key('numbers', tenant, name), 0, 0)[1]
  if not newest then return false end
  local aliases, listed = redis.call('HGETALL', key('aliases', tenant, name)), {}
  for at = 1, #aliases, 2 do listed[#listed + 1] = shown(aliases[at], cjson.decode(aliases[at + 1])) end
  return {name, redis.call('HGET', key('head', tenant, name), 'kind'), newest, redis.call('ZCARD', key('numbers', tenant, name)), listed}
end

local function point(tenant, principal, name, alias, before, targets, origin, action, reason, forced)
  local revision = before and before.revision + 1 or 1
  local now = {revision = revision, origin = origin or revision, targets = targets, changed_s = STAMP}
  redis.call('HSET', key('aliases', tenant, name), alias, cjson.encode(now))
  redis.call('RPUSH', key('history', tenant, name, alias), cjson.encode({revision = revision, origin = now.origin, targets = targets,
    at_s = STAMP, principal = principal, action = action, reason = reason, forced = forced}))
  local more = ',"reason":' .. cjson.encode(reason) .. ',"forced":' .. tostring(forced)
  audit(tenant, principal, action, name, before and shown(alias, before) or '', shown(alias, now, more))
  return {'done', shown(alias, now)}
end

local function conflict(name, alias, present, expected)
  local revision = present and present.revision or 0
  if expected ~= '' and tonumber(expected) ~= revision then return {'AliasConflict', name, alias, revision, tonumber(expected)} end
  return nil
end

local function preloading(tenant, name, n)
  local workers = redis.call('SMEMBERS', key('preloaded', tenant, name) .. n)
  table.sort(workers)
  for at, worker in ipairs(workers) do workers[at] = cjson.encode(worker) end
  return '[' .. table.concat(workers, ',') .. ']'
end

local function audit_preload(tenant, principal, action, name, n, worker, before)
  local function told(workers)
    return '{"version":' .. n .. ',"worker_id":' .. cjson.encode(worker) .. ',"preloaded_on":' .. workers .. '}'
  end
  audit(tenant, principal, action, name, told(before), told(preloading(tenant, name, n)))
end

local looks, changes = {}, {}

-- Returns described() or false.
function looks.module(tenant, name) return described(tenant, name) end

-- first, last: bounds of ZRANGEBYLEX. kind: "" for all. Returns described() of each.
function looks.modules(tenant, first, last, limit, kind)
  local names = kind == '' and key('names', tenant) or key('names', tenant, kind)
  local found = {}
  for _, name in ipairs(redis.call('ZRANGEBYLEX', names, first, last, 'LIMIT', 0, limit)) do
    found[#found + 1] = described(tenant, name)
  end
  return found
end

function looks.count(tenant) return redis.call('ZCARD', key('names', tenant)) end

-- Returns stored() or false.
function looks.version(tenant, name, n)
  local version = stored(tenant, name, n)
  return version[1] and version
end

-- before: a bound of ZREVRANGEBYSCORE. Returns stored() of each, newest first.
function looks.versions(tenant, name, before, limit)
  local found = {}
  for _, n in ipairs(redis.call('ZREVRANGEBYSCORE', key('numbers', tenant, name), before, '-inf', 'LIMIT', 0, limit)) do
    found[#found + 1] = stored(tenant, name, n)
  end
  return found
end

-- alias or n, the other is "". Returns false, or the alias (or false) and stored() of its targets, or of n.
function looks.resolve(tenant, name, alias, n)
  if redis.call('EXISTS', key('numbers', tenant, name)) == 0 then return false end
  if n ~= '' then
    return usable(tenant, name, n) and {false, {stored(tenant, name, n)}}
  end
  local present, found = alias_of(tenant, name, alias), {}
  if not present then return {false, found} end
  for _, share in ipairs(cjson.decode(present.targets)) do found[#found + 1] = stored(tenant, name, share.version) end
  return {shown(alias, present), found}
end

-- Returns false for a name that never had a version.
function looks.history(tenant, name, alias)
  return redis.call('EXISTS', key('head', tenant, name)) == 1 and redis.call('LRANGE', key('history', tenant, name, alias), 0, -1)
end

function looks.preloads() return redis.call('HVALS', P .. 'preloads') end

function looks.referenced(digest) return redis.call('EXISTS', P .. 'references:' .. digest) end

function looks.last_event_id(tenant)
  local event = redis.call('XREVRANGE', key('events', tenant), '+', '-', 'COUNT', 1)[1]
  return event and event[1] or '0-0'
end

-- version: JSON without the number, which it gets here. gate: JSON or "". moves: "1" or "". claim: a token or "". Answers stored().
function changes.publish(tenant, principal, name, version, gate, moves, claim)
  local v = cjson.decode(version)
  local kind = redis.call('HGET', key('head', tenant, name), 'kind')
  if kind and kind ~= v.kind then
    return {'InvalidField', 'header.kind', 'module ' .. name .. ' is of the kind ' .. kind .. ', and a module has one kind'}
  end
  local newest = redis.call('ZREVRANGE', key('numbers', tenant, name), 0, 0)[1]
  if newest then
    local same = stored(tenant, name, newest)
    local known = cjson.decode(same[1])
    -- One that is being deleted would be acknowledged, and then be gone.
    if known.digest == v.digest and known.probes_digest == v.probes_digest and usable(tenant, name, newest) then
      unclaim(claim, parts_of(v))
      return {'unchanged', same[1], same[2], same[3]}
    end
  end
  local gone = lost(claim, parts_of(v))
  if gone then return {'DigestCondemned', gone} end
  local n = redis.call('HINCRBY', key('head', tenant, name), 'last', 1)
  redis.call('HSET', key('head', tenant, name), 'kind', v.kind)
  version = '{"version":' .. n .. ',' .. string.sub(version, 2)
  redis.call('HSET', key('versions', tenant, name), 'v:' .. n, version)
  if gate ~= '' then redis.call('HSET', key('versions', tenant, name), 'g:' .. n, gate) end
  if moves ~= '' then redis.call('HSET', key('versions', tenant, name), 'm:' .. n, moves) end
  redis.call('ZADD', key('numbers', tenant, name), n, n)
  redis.call('ZADD', key('names', tenant), 0, name)
  redis.call('ZADD', key('names', tenant, v.kind), 0, name)
  for _, digest in ipairs(parts_of(v)) do redis.call('SADD', P .. 'references:' .. digest, owner(tenant, name, n)) end
  unclaim(claim, parts_of(v))
  audit(tenant, principal, 'publish', name, '', brief(version))
  return {'done', version, gate ~= '' and gate, moves ~= '' and moves}
end

-- targets: JSON. forced: "1" or "". expected: a revision or "". Answers the alias.
function changes.set_alias(tenant, principal, name, alias, targets, action, reason, forced, expected)
  local present = alias_of(tenant, name, alias)
  local refused = conflict(name, alias, present, expected)
  if refused then return refused end
  for _, share in ipairs(cjson.decode(targets)) do
    if not usable(tenant, name, share.version) then return {'ModuleNotFound', reference(name, share.version)} end
  end
  if not present and redis.call('HLEN', key('aliases', tenant, name)) >= ALIASES_MAX then
    return {'InvalidField', 'alias', 'module ' .. name .. ' has ' .. ALIASES_MAX .. ' aliases, and no module has more'}
  end
  local origin = present and present.targets == targets and present.origin or nil
  return point(tenant, principal, name, alias, present, targets, origin, action, reason, forced == '1')
end

-- leaving: a version's number or "". Answers the alias.
function changes.rollback(tenant, principal, name, alias, action, reason, expected, leaving)
  if redis.call('EXISTS', key('numbers', tenant, name)) == 0 then return {'ModuleNotFound', name} end
  local present = alias_of(tenant, name, alias)
  local refused = conflict(name, alias, present, expected)
  if refused then return refused end
  local function no(why) return {'NothingToRollBack', name, alias, why} end
  if not present then return no('it has never been set') end
  if leaving ~= '' and not targets_version(present.targets, leaving) then
    return no('version ' .. leaving .. ' is not among its targets')
  end
  local to = present
  -- Whoever leaves a version wants targets without it: an earlier split may have had it too.
  for _ = 1, ROLLBACK_STEPS do
    if to.origin <= 1 then return no('it had no other targets before') end
    -- From the end, which is where Redis finds it fast.
    to = cjson.decode(redis.call('LINDEX', key('history', tenant, name, alias), to.origin - 2 - present.revision))
    if leaving == '' or not targets_version(to.targets, leaving) then break end
  end
  if leaving ~= '' and targets_version(to.targets, leaving) then return no('it has had version ' .. leaving .. ' for too many changes') end
  for _, share in ipairs(cjson.decode(to.targets)) do
    if not usable(tenant, name, share.version) then return no('version ' .. share.version .. ', which it had before, has been deleted') end
  end
  return point(tenant, principal, name, alias, present, to.targets, to.origin, action, reason, false)
end

-- gate: JSON. Answers stored().
function changes.keep_gate(tenant, principal, name, n, gate)
  local version = stored(tenant, name, n)
  if not version[1] then return {'ModuleNotFound', reference(name, n)} end
  local function told(report) return report and '{"version":' .. n .. ',"gate":' .. report .. '}' or '' end
  redis.call('HSET', key('versions', tenant, name), 'g:' .. n, gate)
  audit(tenant, principal, 'gate', name, told(version[2]), told(gate))
  return {'done', version[1], gate, version[3]}
end

-- Answers stored().
function changes.keep_moves_logits(tenant, name, n)
  local version = stored(tenant, name, n)
  if not version[1] then return {'ModuleNotFound', reference(name, n)} end
  redis.call('HSET', key('versions', tenant, name), 'm:' .. n, '1')
  return {'done', version[1], version[2], '1'}
end

function changes.hold(tenant, name, n, token, seconds)
  if not exists(tenant, name, n) then return {'ModuleNotFound', reference(name, n)} end
  local other = holder(tenant, name, n)
  local user = other and other ~= token and 'another deletion' or user_of(tenant, name, n)
  if user then return {'VersionInUse', reference(name, n), user} end
  redis.call('HSET', key('versions', tenant, name), 'h:' .. n, cjson.encode({token = token, ends = NOW + tonumber(seconds)}))
  return {'done'}
end

function changes.release(tenant, name, n, token)
  if holder(tenant, name, n) == token then redis.call('HDEL', key('versions', tenant, name), 'h:' .. n) end
  return {'done'}
end

-- token: whose mark must be on it still, "" for no matter. Answers stored(), and whether nobody references the digest any more.
function changes.delete(tenant, principal, name, n, token)
  local version = stored(tenant, name, n)
  if not version[1] then return {'ModuleNotFound', reference(name, n)} end
  local user = user_of(tenant, name, n)
  if not user and token ~= '' and holder(tenant, name, n) ~= token then user = 'requests that may have come since its mark ran out' end
  if user then return {'VersionInUse', reference(name, n), user} end
  local v = cjson.decode(version[1])
  redis.call('HDEL', key('versions', tenant, name), 'v:' .. n, 'g:' .. n, 'm:' .. n, 'h:' .. n)
  redis.call('ZREM', key('numbers', tenant, name), n)
  for _, digest in ipairs(parts_of(v)) do redis.call('SREM', P .. 'references:' .. digest, owner(tenant, name, n)) end
  if redis.call('EXISTS', key('numbers', tenant, name)) == 0 then
    redis.call('ZREM', key('names', tenant), name)
    redis.call('ZREM', key('names', tenant, v.kind), name)
  end
  audit(tenant, principal, 'delete', name, brief(version[1]), '')
  return {'done', version, redis.call('EXISTS', P .. 'references:' .. v.digest) == 0}
end

-- Answers the event's id and time.
function changes.record(tenant, principal, action, module, before, after)
  return {'done', audit(tenant, principal, action, module, before, after), STAMP}
end

function changes.preload(tenant, principal, name, n, worker)
  if not usable(tenant, name, n) then return {'ModuleNotFound', reference(name, n)} end
  local v = cjson.decode(stored(tenant, name, n)[1])
  local before = preloading(tenant, name, n)
  redis.call('SADD', key('preloaded', tenant, name) .. n, worker)
  redis.call('HSET', P .. 'preloads', owner(tenant, name, n .. ':' .. worker),
    cjson.encode({digest = v.digest, kind = v.kind, worker_id = worker}))
  audit_preload(tenant, principal, 'preload', name, n, worker, before)
  return {'done'}
end

-- worker: "" takes all away.
function changes.unload(tenant, principal, name, n, worker)
  if not exists(tenant, name, n) then return {'ModuleNotFound', reference(name, n)} end
  local before, set = preloading(tenant, name, n), key('preloaded', tenant, name) .. n
  for _, each in ipairs(worker == '' and redis.call('SMEMBERS', set) or {worker}) do
    redis.call('SREM', set, each)
    redis.call('HDEL', P .. 'preloads', owner(tenant, name, n .. ':' .. each))
  end
  audit_preload(tenant, principal, 'unload', name, n, worker, before)
  return {'done'}
end

function changes.claim(token, seconds, ...)
  local condemned = lost('', {...})
  if condemned then return {'DigestCondemned', condemned} end
  local ms = math.ceil(tonumber(seconds) * 1000)
  for _, digest in ipairs({...}) do
    local claims = P .. 'claims:' .. digest
    redis.call('ZADD', claims, NOW + ms / 1000, token)
    if redis.call('PTTL', claims) < ms then redis.call('PEXPIRE', claims, ms) end
  end
  return {'done'}
end

function changes.unclaim(token, ...)
  unclaim(token, {...})
  return {'done'}
end

-- Answers whether the digest is condemned by this token now.
function changes.condemn(digest, token, seconds)
  local by = redis.call('GET', P .. 'condemned:' .. digest)
  local used = redis.call('EXISTS', P .. 'references:' .. digest) == 1 or redis.call('ZCOUNT', P .. 'claims:' .. digest, NOW, '+inf') > 0
  if used or by and by ~= token then return {'unchanged', false} end
  redis.call('SET', P .. 'condemned:' .. digest, token, 'PX', math.ceil(tonumber(seconds) * 1000))
  return {'done', true}
end

function changes.absolve(digest, token)
  if redis.call('GET', P .. 'condemned:' .. digest) == token then redis.call('DEL', P .. 'condemned:' .. digest) end
  return {'done'}
end

local look = looks[ARGV[1]]
if look then return look(unpack(ARGV, 3)) end
local done = P .. 'done:' .. ARGV[2]
local told = redis.call('GET', done)
if told then return told end
local reply = changes[ARGV[1]](unpack(ARGV, 3))
told = cjson.encode(reply)
if reply[1] == 'done' then redis.call('SET', done, told, 'PX', DONE_MS) end
return told
