-- The module store: a tenant's modules, their versions and aliases, the audit, and what workers load when they start. The changes, and
-- what calls them, are in module_changes.lua: the two are one script.
-- Each script is one atomic change together with its audit event, or one consistent look.
--
-- ARGV: the script's name, the call's id ("" for a look), the audit's limits (days, bytes; 0 for none), the script's arguments. Tenants, names and aliases stand in keys as
-- <length>:<text>, so that none can reach into another's.
--
--   names:T, names:T<kind>   sorted sets, all of score 0: the modules that have versions
--   head:TN                  hash: kind, last (the highest number ever given)
--   numbers:TN               sorted set: the numbers of the versions that there are
--   versions:TN              hash: v:<n> the version, which never changes; t:<n> its texts, apart so that requests need not carry them;
--                            g:<n> gate report; m:<n> it moves logits; h:<n> held
--   aliases:TN               hash by alias: {revision, origin, targets, changed_s}
--   history:TNA              list of {revision, origin, targets, at_s, principal, action, reason, forced}; revision r is at r - 1, and a
--                            drop has no targets
--   canaries                 hash by JSON [T, N, A]: {versions, revision} of an alias that has canaries
--   references:<digest>      set of TN<n>, of the version's weights and of its probes
--   condemned:<digest>       string: by whom, until it expires;  claims:<digest>  sorted set of publishers' tokens by when they end
--   preloaded:TN<n>          set of worker ids, "" for every worker
--   preloads                 hash of all by TN<n>:worker: {digest, kind, worker_id, gone}; gone: since when the worker has had no lease
--   events:T                 stream of the audit, trimmed as audit_room() says, and an event tells of it
--   audit:T                  hash: released, the last event that has been exported; looked, when events too old were last looked for
--   done:<call>              what a change answered, for a call that is sent again because its connection broke
--
-- `origin` is the revision that first had these targets: what the alias was before them is at revision origin - 1, however many
-- rollbacks came since, and however many splits with a version that was taken out. Times and targets are kept as text: cjson would round
-- their numbers.
-- A canary is a version that shares an alias and had not passed the gate when it came to it. It is one until it no longer shares it, also
-- when it has passed since.
-- A change answers {"done", ...}, or an error's class and its arguments.

local P = 'memserve:module:'
local ALIASES_MAX = 256
local ROLLBACK_STEPS = 1000
-- Of JSON.
local PAGE_BYTES = 2 * 1024 * 1024
local BATCH = 16
-- After an outage of this Redis no worker has a lease until it has renewed it.
local WORKER_GONE_S = 3600
-- Shares are quotients: what is equal on paper differs by this much at most.
local ROUNDING = 1e-9
local DONE_MS = 10000
local DAY_S = 86400
-- Events that are too old go in batches, each with an event of its own that says so.
local AUDIT_LOOK_S = 3600
local AUDIT_DAYS, AUDIT_MAX_BYTES = tonumber(ARGV[3]), tonumber(ARGV[4])
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

-- Tenant, name and number of an owner().
local function owned(text)
  local names = {}
  for at = 1, 2 do
    local length, rest = string.match(text, '^(%d+):(.*)$')
    names[at], text = string.sub(rest, 1, tonumber(length)), string.sub(rest, length + 1)
  end
  return names[1], names[2], text
end

local function audit(tenant, principal, action, module, before, after)
  return redis.call('XADD', key('events', tenant), '*', 'at_s', STAMP, 'principal', principal, 'action', action, 'module', module,
    'before', before, 'after', after)
end

local function audit_bytes(tenant) return redis.call('MEMORY', 'USAGE', key('events', tenant)) or 0 end

-- Take the events before an id away, and tell of it. why: retention or released.
local function trim_audit(tenant, before, why)
  local events = key('events', tenant)
  local first = redis.call('XRANGE', events, '-', '+', 'COUNT', 1)[1]
  local count = redis.call('XTRIM', events, 'MINID', before)
  if count == 0 then return end
  audit(tenant, 'memserve', 'trim', '', cjson.encode({events = count, from = first[1], before = before}), cjson.encode({why = why}))
end

-- Before a change. Events that are past their days go; over the bytes, those that have been exported and released go too.
-- Returns the bytes when there is no room for another event, else nil.
local function audit_room(tenant)
  local state = redis.call('HMGET', key('audit', tenant), 'looked', 'released')
  if AUDIT_DAYS > 0 and NOW - tonumber(state[1] or 0) > AUDIT_LOOK_S then
    redis.call('HSET', key('audit', tenant), 'looked', STAMP)
    trim_audit(tenant, string.format('%d-0', math.max(0, (NOW - AUDIT_DAYS * DAY_S) * 1000)), 'retention')
  end
  if AUDIT_MAX_BYTES == 0 or audit_bytes(tenant) <= AUDIT_MAX_BYTES then return nil end
  if state[2] then
    local ms, sequence = string.match(state[2], '^(%d+)-(%d+)$')
    trim_audit(tenant, ms .. '-' .. string.format('%d', tonumber(sequence) + 1), 'released')
  end
  local bytes = audit_bytes(tenant)
  return bytes > AUDIT_MAX_BYTES and bytes or nil
end

-- The version, its texts, its gate report, and whether it moves logits; the first is false where there is none.
local function stored(tenant, name, n)
  return redis.call('HMGET', key('versions', tenant, name), 'v:' .. n, 't:' .. n, 'g:' .. n, 'm:' .. n)
end

-- As stored(), without the texts and the gate report.
local function slim(tenant, name, n)
  local found = redis.call('HMGET', key('versions', tenant, name), 'v:' .. n, 'm:' .. n)
  return {found[1], false, false, found[2]}
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

-- The targets without a version, in the same spelling.
local function without(targets, n)
  local rest = {}
  for target in string.gmatch(targets, '{[^}]*}') do
    if cjson.decode(target).version ~= tonumber(n) then rest[#rest + 1] = target end
  end
  return '[' .. table.concat(rest, ', ') .. ']'
end

-- Each version's part of the whole, 0 to 1, by version.
local function parts(targets)
  local total, by_version = 0, {}
  for _, share in ipairs(cjson.decode(targets)) do
    total = total + share.weight
    by_version[share.version] = share.weight
  end
  for n, weight in pairs(by_version) do by_version[n] = weight / total end
  return by_version
end

local function alike(targets, others)
  local other = parts(others)
  for n, part in pairs(parts(targets)) do
    if math.abs(part - (other[n] or 0)) > ROUNDING then return false end
  end
  return true
end

-- An alias as JSON. more: further fields, in text.
local function shown(alias, a, more)
  return '{"name":' .. cjson.encode(alias) .. ',"targets":' .. a.targets .. ',"revision":' .. a.revision .. ',"changed_s":' .. a.changed_s
    .. (more or '') .. '}'
end

-- "" stands for every worker.
local function lives(worker) return worker == '' or redis.call('EXISTS', 'memserve:worker:' .. worker) == 1 end

local function preloaded_on(tenant, name, n) return redis.call('SMEMBERS', key('preloaded', tenant, name) .. n) end

local function unpreload(tenant, name, n, workers)
  for _, worker in ipairs(workers) do
    redis.call('SREM', key('preloaded', tenant, name) .. n, worker)
    redis.call('HDEL', P .. 'preloads', owner(tenant, name, n .. ':' .. worker))
  end
end

local function user_of(tenant, name, n)
  local aliases = redis.call('HGETALL', key('aliases', tenant, name))
  for at = 1, #aliases, 2 do
    if targets_version(cjson.decode(aliases[at + 1]).targets, n) then return 'alias ' .. aliases[at] end
  end
  for _, worker in ipairs(preloaded_on(tenant, name, n)) do
    if lives(worker) then return 'a preload' end
  end
  return nil
end

-- Name, kind, newest version, number of versions, aliases; or false.
local function described(tenant, name)
  local newest = redis.call('ZREVRANGE', key('numbers', tenant, name), 0, 0)[1]
  if not newest then return false end
  local aliases, listed = redis.call('HGETALL', key('aliases', tenant, name)), {}
  for at = 1, #aliases, 2 do listed[#listed + 1] = shown(aliases[at], cjson.decode(aliases[at + 1])) end
  return {name, redis.call('HGET', key('head', tenant, name), 'kind'), newest, redis.call('ZCARD', key('numbers', tenant, name)), listed}
end

local function passed(tenant, name, n)
  local gate = redis.call('HGET', key('versions', tenant, name), 'g:' .. n)
  return gate and cjson.decode(gate).passed
end

-- Keep which of an alias's versions are canaries. targets: "[]" where it is gone.
local function watch(tenant, name, alias, revision, targets)
  local entry = cjson.encode({tenant, name, alias})
  local known = redis.call('HGET', P .. 'canaries', entry)
  local before, canaries, shares = {}, {}, cjson.decode(targets)
  for _, n in ipairs(known and cjson.decode(known).versions or {}) do before[n] = true end
  for _, share in ipairs(#shares > 1 and shares or {}) do
    if before[share.version] or not passed(tenant, name, share.version) then canaries[#canaries + 1] = share.version end
  end
  if #canaries == 0 then return redis.call('HDEL', P .. 'canaries', entry) end
  redis.call('HSET', P .. 'canaries', entry, cjson.encode({versions = canaries, revision = revision}))
end

-- Add to an alias's history; the next revision's number comes from there, so that it rises across a drop too.
-- origin: nil for a new one. Returns what to keep of the alias.
local function add_change(tenant, principal, name, alias, targets, origin, action, reason, forced)
  local history = key('history', tenant, name, alias)
  local revision = redis.call('LLEN', history) + 1
  local now = {revision = revision, origin = origin or revision, targets = targets, changed_s = STAMP}
  redis.call('RPUSH', history, cjson.encode({revision = revision, origin = now.origin, targets = targets, at_s = STAMP,
    principal = principal, action = action, reason = reason, forced = forced}))
  watch(tenant, name, alias, revision, targets)
  return now
end

local function point(tenant, principal, name, alias, before, targets, origin, action, reason, forced)
  local now = add_change(tenant, principal, name, alias, targets, origin, action, reason, forced)
  redis.call('HSET', key('aliases', tenant, name), alias, cjson.encode(now))
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
  local workers = preloaded_on(tenant, name, n)
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

local function size_of(entry)
  if type(entry) ~= 'table' then return #tostring(entry) end
  local size = 0
  for _, field in ipairs(entry) do size = size + size_of(field) end
  return size
end

-- keys: up to limit + 1. Returns what `look` finds for the first of them, as many as fit a page but one at least, and the last key that was
-- looked at where there are more, else "".
local function page(keys, limit, look)
  local found, size = {}, 0
  for at, each in ipairs(keys) do
    if at > limit then return {found, keys[at - 1]} end
    local entry = look(each)
    if entry then
      size = size + size_of(entry)
      if #found > 0 and size > PAGE_BYTES then return {found, keys[at - 1]} end
      found[#found + 1] = entry
    end
  end
  return {found, ''}
end

-- What `read` gives for what was found so far and a number, again and again, until a page is full: no more is read than a batch beyond it.
local function by_batches(limit, read)
  local found, size = {}, 0
  while #found < limit do
    local batch = read(found, math.min(BATCH, limit - #found))
    for _, entry in ipairs(batch) do
      size = size + size_of(entry)
      if #found > 0 and size > PAGE_BYTES then return found end
      found[#found + 1] = entry
    end
    if #batch < math.min(BATCH, limit) then return found end
  end
  return found
end

-- first, last: bounds of ZRANGEBYLEX. kind: "" for all. Returns a page() of described().
function looks.modules(tenant, first, last, limit, kind)
  local names = kind == '' and key('names', tenant) or key('names', tenant, kind)
  local found = redis.call('ZRANGEBYLEX', names, first, last, 'LIMIT', 0, limit + 1)
  return page(found, tonumber(limit), function(name) return described(tenant, name) end)
end

function looks.count(tenant) return redis.call('ZCARD', key('names', tenant)) end

-- Returns stored() or false.
function looks.version(tenant, name, n)
  local version = stored(tenant, name, n)
  return version[1] and version
end

-- before: a bound of ZREVRANGEBYSCORE. Returns a page() of stored(), newest first.
function looks.versions(tenant, name, before, limit)
  local found = redis.call('ZREVRANGEBYSCORE', key('numbers', tenant, name), before, '-inf', 'LIMIT', 0, limit + 1)
  return page(found, tonumber(limit), function(n) return stored(tenant, name, n) end)
end

-- alias or n, the other is "". Returns false, or the alias (or false) and slim() of its targets, or of n.
function looks.resolve(tenant, name, alias, n)
  if redis.call('EXISTS', key('numbers', tenant, name)) == 0 then return false end
  if n ~= '' then
    return usable(tenant, name, n) and {false, {slim(tenant, name, n)}}
  end
  local present, found = alias_of(tenant, name, alias), {}
  if not present then return {false, found} end
  for _, share in ipairs(cjson.decode(present.targets)) do found[#found + 1] = slim(tenant, name, share.version) end
  return {shown(alias, present), found}
end

-- after: a revision, 0 for the first on. Returns as many as fit a page, one at least; false for a name that never had a version.
function looks.history(tenant, name, alias, after, limit)
  if redis.call('EXISTS', key('head', tenant, name)) == 0 then return false end
  local history = key('history', tenant, name, alias)
  return by_batches(tonumber(limit), function(found, batch)
    local start = after + #found
    return redis.call('LRANGE', history, start, start + batch - 1)
  end)
end

-- after: an event's id. Returns as many as fit a page, one at least.
function looks.events(tenant, after, limit)
  local last = after
  return by_batches(tonumber(limit), function(found, batch)
    if #found > 0 then last = found[#found][1] end
    return redis.call('XRANGE', key('events', tenant), '(' .. last, '+', 'COUNT', batch)
  end)
end

function looks.canaries() return redis.call('HGETALL', P .. 'canaries') end

-- Those of workers that live, and on the way those of workers that have been gone for long are taken away: no worker gets a name that
-- another had.
function looks.preloads()
  local all, found = redis.call('HGETALL', P .. 'preloads'), {}
  for at = 1, #all, 2 do
    local preload = cjson.decode(all[at + 1])
    local alive, gone = lives(preload.worker_id), preload.gone
    preload.gone = not alive and (gone or NOW) or nil
    if preload.gone ~= gone then redis.call('HSET', P .. 'preloads', all[at], cjson.encode(preload)) end
    if alive then
      found[#found + 1] = all[at + 1]
    elseif preload.gone < NOW - WORKER_GONE_S then
      local tenant, name, rest = owned(all[at])
      unpreload(tenant, name, string.match(rest, '^%d+'), {preload.worker_id})
    end
  end
  return found
end

function looks.referenced(digest) return redis.call('EXISTS', P .. 'references:' .. digest) end

-- Of these digests, those that a version of the tenant has.
function looks.of_tenant(tenant, ...)
  local found = {}
  for _, digest in ipairs({...}) do
    for _, text in ipairs(redis.call('SMEMBERS', P .. 'references:' .. digest)) do
      if owned(text) == tenant then
        found[#found + 1] = digest
        break
      end
    end
  end
  return found
end

-- Whether another version, which is not about to be deleted too, has the digest of this one.
function looks.other_references(tenant, name, n)
  local version = stored(tenant, name, n)[1]
  if not version then return false end
  local this = owner(tenant, name, n)
  for _, other in ipairs(redis.call('SMEMBERS', P .. 'references:' .. cjson.decode(version).digest)) do
    if other ~= this and not holder(owned(other)) then return 1 end
  end
  return 0
end

function looks.last_event_id(tenant)
  local event = redis.call('XREVRANGE', key('events', tenant), '+', '-', 'COUNT', 1)[1]
  return event and event[1] or '0-0'
end
