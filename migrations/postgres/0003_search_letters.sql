-- An index of trigrams, so that a text is found among millions of letters without reading them all. The extension is
-- trusted: whoever may create in this database may install it. Where that is not so, searching works without, slower.
DO $$
DECLARE
    home text;
    why text := 'it is in a schema that may not be used';
BEGIN
    BEGIN
        CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public;
    EXCEPTION
        -- Not allowed, not installed on the server, no such schema, made by somebody else at this moment…
        WHEN OTHERS THEN why := SQLERRM;
    END;
    SELECT nspname INTO home
    FROM pg_extension JOIN pg_namespace AS n ON n.oid = extnamespace WHERE extname = 'pg_trgm';
    IF has_schema_privilege(home, 'USAGE') THEN
        EXECUTE format('CREATE INDEX IF NOT EXISTS dead_letters_search ON dead_letters USING gin (search %I.gin_trgm_ops)', home);
    ELSE
        RAISE WARNING 'dead letters are searched without an index: there is no pg_trgm (%); as an administrator run: CREATE EXTENSION pg_trgm; CREATE INDEX dead_letters_search ON %.dead_letters USING gin (search gin_trgm_ops)', why, quote_ident(current_schema());
    END IF;
END
$$;
