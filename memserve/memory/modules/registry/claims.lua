-- Claims and blocks: who may use a digest while its content is put or removed. Keys are in prelude.lua.
--
-- A publisher claims digests while it stores their content. Whoever removes content condemns its digest:
-- nothing is published under a condemned digest. Content that is referenced or claimed is not condemned, and
-- what is condemned is neither claimed nor published. Both end by themselves.

function claims.remove(token, digests)
  for _, digest in ipairs(digests) do redis.call('ZREM', claims_key(digest), token) end
end

local function is_condemned(digest) return redis.call('EXISTS', condemned_key(digest)) == 1 end

local function has_claim(token, digest)
  return tonumber(redis.call('ZSCORE', claims_key(digest), token) or 0) > NOW_S
end

-- One of the digests that is condemned or, with a token, that the token no longer claims; or nil.
function claims.first_unpublishable(token, digests)
  for _, digest in ipairs(digests) do
    if is_condemned(digest) or (token ~= '' and not has_claim(token, digest)) then return digest end
  end
  return nil
end

function claims.is_referenced(digest) return redis.call('EXISTS', references_key(digest)) == 1 end

-- request: token, seconds, digests. On all of the digests or on none.
function changes.claim(request)
  local digests = decode_digests(request.digests)
  local condemned = claims.first_unpublishable('', digests)
  if condemned then return {'DigestCondemned', condemned} end
  local claim_ms = math.ceil(tonumber(request.seconds) * 1000)
  for _, digest in ipairs(digests) do
    redis.call('ZADD', claims_key(digest), NOW_S + claim_ms / 1000, request.token)
    if redis.call('PTTL', claims_key(digest)) < claim_ms then
      redis.call('PEXPIRE', claims_key(digest), claim_ms)
    end
  end
  return {'done'}
end

-- request: token, digests.
function changes.unclaim(request)
  claims.remove(request.token, decode_digests(request.digests))
  return {'done'}
end

-- request: digest, token, seconds. Answers whether the digest is condemned by this token now.
function changes.block_publishing(request)
  local digest, token = request.digest, request.token
  local blocker = redis.call('GET', condemned_key(digest))
  local is_claimed = redis.call('ZCOUNT', claims_key(digest), NOW_S, '+inf') > 0
  if claims.is_referenced(digest) or is_claimed or (blocker and blocker ~= token) then
    return {'unchanged', false}
  end
  redis.call('SET', condemned_key(digest), token, 'PX', math.ceil(tonumber(request.seconds) * 1000))
  return {'done', true}
end

-- request: digest, token. Does nothing where another token has condemned the digest.
function changes.allow_publishing(request)
  if redis.call('GET', condemned_key(request.digest)) == request.token then
    redis.call('DEL', condemned_key(request.digest))
  end
  return {'done'}
end

-- request: digest.
function looks.referenced(request) return claims.is_referenced(request.digest) end

-- request: tenant, digests. Returns those that a version of the tenant has, each followed by the version's
-- reference.
function looks.of_tenant(request)
  local of_tenant = {}
  for _, digest in ipairs(decode_digests(request.digests)) do
    for _, version in ipairs(redis.call('SMEMBERS', references_key(digest))) do
      local tenant, module, number = decode_owner(version)
      if tenant == request.tenant then
        of_tenant[#of_tenant + 1] = digest
        of_tenant[#of_tenant + 1] = reference(module, string.match(number, '^%d+'))
        break
      end
    end
  end
  return of_tenant
end
