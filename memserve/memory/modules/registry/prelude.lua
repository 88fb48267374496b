-- The module store: a tenant's modules, their versions and aliases, the audit, and what workers load when
-- they start.
--
-- The files of this folder are one script: prelude.lua comes first, run.lua last, the others in any order. A
-- call runs one function:
--   looks.<name>    one consistent look, which changes nothing
--   sweeps.<name>   a look that also takes away what is over; a repetition does no harm
--   changes.<name>  one atomic change together with its audit event; it answers {"done", ...}, or an error's
--                   class and its arguments
-- Each function takes `request`: the call's arguments by name, as text. The other tables below hold the
-- functions that the files use of each other, by noun. `integrity.py` checks what this file says of keys.
--
-- Tenants, names and aliases stand in keys as <length>:<text>, so that none can reach into another's. Below,
-- T is a tenant, N a module's name, A an alias, <n> a version's number.
--
-- Times and targets are kept as text: cjson would round their numbers.

local PREFIX = 'memserve:module:'
-- Redis's own clock: the clocks of the gateways differ.
local TIME = redis.call('TIME')
local NOW_S = tonumber(TIME[1]) + tonumber(TIME[2]) / 1e6
local NOW_TEXT = string.format('%d.%06d', TIME[1], TIME[2])

-- Functions by their noun.
local audit, versions, aliases, canaries, preloads, claims, pages = {}, {}, {}, {}, {}, {}, {}
local looks, sweeps, changes = {}, {}, {}

local function encode_names(...)
  local encoded = {}
  for position, text in ipairs({...}) do encoded[position] = #text .. ':' .. text end
  return table.concat(encoded)
end

local function key(kind, ...) return PREFIX .. kind .. ':' .. encode_names(...) end

-- Sorted sets, all of score 0: the names of the modules that have versions. kind: nil for every kind.
local function names_key(tenant, kind)
  if kind then return key('names', tenant, kind) end
  return key('names', tenant)
end

-- Hash of a module: kind, last (the highest number that a version ever had). It outlives the module's
-- versions.
local function head_key(tenant, module) return key('head', tenant, module) end

-- Sorted set: the numbers of the versions that exist.
local function numbers_key(tenant, module) return key('numbers', tenant, module) end

-- Hash of a module's versions, by the fields of versions.fields().
local function versions_key(tenant, module) return key('versions', tenant, module) end

-- Hash by alias: {revision, origin, targets, changed_s}. `origin` is the revision that first had these
-- targets: what the alias was before them is at revision origin - 1, however many rollbacks came since, and
-- however many splits with a version that was taken out.
local function aliases_key(tenant, module) return key('aliases', tenant, module) end

-- List of {revision, origin, targets, at_s, principal, action, reason, forced}. Revision r is at r - 1. A
-- drop has no targets.
local function history_key(tenant, module, alias) return key('history', tenant, module, alias) end

-- Hash by JSON [T, N, A]: {versions, revision} of an alias that has canaries.
local CANARIES_KEY = PREFIX .. 'canaries'

-- Set of owner(): the versions that consist of this content. Weights and probes are both content.
local function references_key(digest) return PREFIX .. 'references:' .. digest end

-- String: the token of who removes the content, until it expires. Nothing is published under a condemned
-- digest.
local function condemned_key(digest) return PREFIX .. 'condemned:' .. digest end

-- Sorted set of publishers' tokens by when their claims end.
local function claims_key(digest) return PREFIX .. 'claims:' .. digest end

-- Set of the ids of the workers that load the version when they start. '' is every worker.
local function preloaded_key(tenant, module, number) return key('preloaded', tenant, module) .. number end

-- Hash of all preloads by owner():worker: {digest, kind, worker_id, gone}. `gone` is since when the worker
-- has had no lease.
local PRELOADS_KEY = PREFIX .. 'preloads'

-- Hash by module: the newest distillation of the module, as JSON. `distillations.lua` has its fields.
local function distillations_key(tenant) return key('distillations', tenant) end

-- Set of encode_names(T, N): the distillations of all tenants that are under way.
local DISTILLING_KEY = PREFIX .. 'distilling'

-- Hash by namespace: the newest consolidation of the namespace, as JSON. `consolidations.lua` has its fields.
local function consolidations_key(tenant) return key('consolidations', tenant) end

-- Stream of the audit's events.
local function events_key(tenant) return key('events', tenant) end

-- Hash: released, the last event that has been exported; looked, when old events were last looked for.
local function audit_key(tenant) return key('audit', tenant) end

-- What a change answered, for a call that is sent again because its connection broke.
local function done_key(call) return PREFIX .. 'done:' .. call end

local function reference(module, number) return module .. '@' .. number end

-- A version, in a text that no other version has.
local function owner(tenant, module, number) return encode_names(tenant, module) .. number end

-- Tenant, module and number (with what follows it) of an owner().
local function decode_owner(text)
  local names = {}
  for position = 1, 2 do
    local length, rest = string.match(text, '^(%d+):(.*)$')
    names[position], text = string.sub(rest, 1, tonumber(length)), string.sub(rest, length + 1)
  end
  return names[1], names[2], text
end

-- A list of digests, which travels as one argument.
local function decode_digests(text)
  local digests = {}
  for digest in string.gmatch(text, '[^,]+') do digests[#digests + 1] = digest end
  return digests
end

-- Calls `visit` with each field and value of a hash.
local function for_each_field(hash_key, visit)
  local flat = redis.call('HGETALL', hash_key)
  for position = 1, #flat, 2 do visit(flat[position], flat[position + 1]) end
end
