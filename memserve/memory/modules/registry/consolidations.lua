-- Consolidations: namespaces of memories that are to become fewer. Keys are in prelude.lua. They are here
-- because the audit is: a consolidation and its event are one change.
--
-- The newest one of each namespace is kept, as JSON {id, state, principal, at_s, body}; `body` is JSON as
-- text, which is not read here.

local CONSOLIDATIONS_KEPT_S = 7 * 86400
local CONSOLIDATIONS_MAX = 64

local function sweep_consolidations(tenant)
  local kept = {}
  for_each_field(consolidations_key(tenant), function(namespace, text)
    kept[#kept + 1] = {namespace = namespace, at_s = tonumber(cjson.decode(text).at_s)}
  end)
  table.sort(kept, function(first, second) return first.at_s > second.at_s end)
  for position, each in ipairs(kept) do
    if position > CONSOLIDATIONS_MAX or each.at_s < NOW_S - CONSOLIDATIONS_KEPT_S then
      redis.call('HDEL', consolidations_key(tenant), each.namespace)
    end
  end
end

-- request: tenant, principal, namespace, id, state, body, told (a JSON object, for the audit), expected (the
-- state that the consolidation with this id must have; '': there is none yet). Answers whether it was kept.
function changes.keep_consolidation(request)
  local key = consolidations_key(request.tenant)
  local text = redis.call('HGET', key, request.namespace)
  local known = text and cjson.decode(text) or nil
  if request.expected ~= '' then
    if not known or known.id ~= request.id or known.state ~= request.expected then
      return {'unchanged', false}
    end
  end
  local principal = request.expected ~= '' and known.principal or request.principal
  redis.call('HSET', key, request.namespace, cjson.encode({
    id = request.id, state = request.state, principal = principal, at_s = NOW_TEXT, body = request.body,
  }))
  sweep_consolidations(request.tenant)
  local told = cjson.decode(request.told)
  told.id, told.state = request.id, request.state
  local before = request.expected ~= '' and cjson.encode({state = request.expected}) or ''
  audit.add_event(request, 'consolidate', request.namespace, before, cjson.encode(told))
  return {'done', true}
end

-- request: tenant, namespace. Namespaces and consolidations in turn; namespace '': all.
function sweeps.consolidations(request)
  sweep_consolidations(request.tenant)
  if request.namespace == '' then return redis.call('HGETALL', consolidations_key(request.tenant)) end
  local text = redis.call('HGET', consolidations_key(request.tenant), request.namespace)
  return text and {request.namespace, text} or {}
end

-- request: tenant, namespace, id. The consolidation goes, with the texts that it has. Answers whether it did.
function sweeps.forget_consolidation(request)
  local key = consolidations_key(request.tenant)
  local text = redis.call('HGET', key, request.namespace)
  if not text or cjson.decode(text).id ~= request.id then return 0 end
  return redis.call('HDEL', key, request.namespace)
end
