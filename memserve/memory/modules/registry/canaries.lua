-- Canaries: versions that share an alias and had not passed the gate when they came to it. Keys are in
-- prelude.lua.
--
-- A canary is one until it no longer shares the alias, also when it has passed since.

-- Keep which of an alias's versions are canaries. revision: {revision, targets}; the targets are '[]' where
-- the alias is gone.
function canaries.update(tenant, module, alias, revision)
  local entry = cjson.encode({tenant, module, alias})
  local known = redis.call('HGET', CANARIES_KEY, entry)
  local was_canary, numbers, shares = {}, {}, cjson.decode(revision.targets)
  for _, number in ipairs(known and cjson.decode(known).versions or {}) do was_canary[number] = true end
  for _, share in ipairs(#shares > 1 and shares or {}) do
    if was_canary[share.version] or not versions.has_passed_gate(tenant, module, share.version) then
      numbers[#numbers + 1] = share.version
    end
  end
  if #numbers == 0 then
    redis.call('HDEL', CANARIES_KEY, entry)
  else
    redis.call('HSET', CANARIES_KEY, entry, cjson.encode({versions = numbers, revision = revision.revision}))
  end
end

function looks.canaries() return redis.call('HGETALL', CANARIES_KEY) end
