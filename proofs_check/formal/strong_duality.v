(* Strong duality: an optimal assignment and an optimal bias exist, and their values are equal.

   For targets that are multiples of some 1/d, equal ones among them: d copies of each token make the targets whole, a
   best whole plan of the copies exists, and so does a bias that certifies it (whole_plans.v); the average over the
   copies is an optimal assignment at the same bias. With equal targets the bias can be chosen with a spread of at most
   rho: cut what exceeds the lowest bias by more than rho. The experts that are cut are held by the same tokens as the
   lowest one, and these prefer the lowest one to whatever they do not hold.

   Last, the problem is feasible exactly if no target is negative or above T and all of them sum to K T. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ssrint.
From alflb Require Import definitions topk duality whole_plans.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ------------------------------------------- equal loads: a bias no wider than the scores will do *)
Section NarrowBias.
Variables (R : realDomainType) (T E K : nat) (scores : 'I_T -> 'I_E -> R).
Variable held : 'I_T -> {set 'I_E}.
Implicit Types (i : 'I_T) (j k : 'I_E).
Local Notation rho := (score_range scores).

Definition content p := forall i j k, k \in held i -> j \notin held i -> biased scores p i j <= biased scores p i k.

(* Biases more than rho above the lowest are cut to that. Experts cut are held by the same tokens as the lowest one. *)
Lemma narrow_bias p : (forall j k, #|[set i | j \in held i]| = #|[set i | k \in held i]|) -> content p ->
  exists2 q, content q & spread q <= rho.
Proof.
move=> equal pP; have [E0|E0] := posnP E.
  have none (k : 'I_E) : False by have := ltn_ord k; rewrite [X in (_ < X)%N]E0.
  by exists p => //; apply: spread_le => [|j]; [exact: score_range_ge0 | case: (none j)].
case: (@Order.TotalTheory.arg_minP _ _ _ (Ordinal E0) xpredT p isT) => low _ lowest.
pose q k := Num.min (p k) (p low + rho).
have q_ge k : p low <= q k by rewrite le_minr lowest //= ler_addl score_range_ge0.
have q_le k : q k <= p low + rho by rewrite le_minl lexx orbT.
exists q; last first.
  apply: spread_le => [|j k]; first exact: score_range_ge0.
  by rewrite ler_subl_addl (le_trans (q_le j)) // ler_add2r.
have high_held k : p low + rho < p k -> [set i | low \in held i] = [set i | k \in held i].
  move=> high; apply/eqP; rewrite eqEcard (equal k low) leqnn andbT; apply/subsetP=> i; rewrite !inE => lowi.
  apply: contraLR high => ki; rewrite -leNgt -(ler_add2l (scores i k)) (le_trans (pP i k low lowi ki)) //.
  by rewrite /biased [p low + rho]addrC addrA ler_add2r -ler_subl_addl score_range_ge.
move=> i j k ki ji; have [near|high] := lerP (p k) (p low + rho).
  rewrite /biased [q k](_ : _ = p k); last by rewrite /q; case: (ltgtP (p k)) near.
  by apply: le_trans (pP i j k ki ji); rewrite ler_add2l le_minl lexx.
have lowi : low \in held i by have := ki; rewrite -[k \in _](in_set (fun i => k \in held i)) -high_held // inE.
rewrite /biased [q k](_ : _ = p low + rho); last by rewrite /q; case: (ltgtP (p k)) high.
have := pP i j low lowi ji; rewrite /biased => le_low.
apply: le_trans (_ : scores i low + p low <= _); last first.
  by rewrite [p low + rho]addrC addrA ler_add2r -ler_subl_addl score_range_ge.
by apply: le_trans le_low; rewrite ler_add2l le_minl lexx.
Qed.

End NarrowBias.

(* ------------------------------------------- targets that are multiples of 1 / d: d copies of each token *)
Section Copies.
Variables (F : realFieldType) (T E K d : nat) (scores : 'I_T -> 'I_E -> F) (l : 'I_E -> nat).
Hypotheses (KE : (K <= E)%N) (d0 : (0 < d)%N).
Implicit Types (i : 'I_T) (j k : 'I_E).
Local Notation N := #|{: 'I_T * 'I_d}|.
Local Notation L := (fun k => (l k)%:R / d%:R : F).

Definition copies (n : 'I_N) : 'I_E -> F := scores (enum_val n).1.

Lemma sum_copies (V : zmodType) (f : 'I_T -> 'I_d -> V) :
  \sum_(n < N) f (enum_val n).1 (enum_val n).2 = \sum_i \sum_c f i c.
Proof. by rewrite pair_bigA (big_enum_val (fun x => f x.1 x.2)). Qed.

Lemma D_copies p : D K copies (fun k => (l k)%:R) p = d%:R * D K scores L p.
Proof.
rewrite /D mulrBr; congr (_ - _).
  rewrite (sum_copies (fun i _ => top_sum K (biased scores p i))) mulr_sumr.
  by apply: eq_bigr => i _; rewrite sumr_const card_ord mulr_natl.
rewrite mulr_sumr; apply: eq_bigr => k _.
by rewrite mulrA mulrCA divff ?mulr1 // pnatr_eq0 -lt0n.
Qed.

Lemma score_range_copies : score_range copies <= score_range scores.
Proof. by apply: bigmax_le => [|n]; rewrite ?bigmax_ge0 //; apply: (le_bigmax (fun i => spread (scores i))). Qed.

Variables (held : {ffun 'I_N -> {set 'I_E}}) (p : 'I_E -> F).
Hypotheses (planned : whole_plan K l held) (contentP : content copies held p).

Definition average i k : F := (\sum_(c < d) plan F held (enum_rank (i, c)) k) / d%:R.

Lemma average_optimal : optimal K scores L average /\ value scores average = D K scores L p.
Proof.
have /andP[/forallP rows /forallP columns] := planned.
have d_neq0 : d%:R != 0 :> F by rewrite pnatr_eq0 -lt0n.
have d_gt0 : 0 < d%:R :> F by rewrite ltr0n.
have over (g : 'I_N -> F) : \sum_i \sum_c g (enum_rank (i, c)) = \sum_n g n.
  rewrite -(sum_copies (fun i c => g (enum_rank (i, c)))); apply: eq_bigr => n _.
  by rewrite -surjective_pairing enum_valK.
apply: no_gap_optimal => //.
  split=> [i k|i|k].
  - have one c := plan_bounds F held (enum_rank (i, c)) k.
    rewrite /average divr_ge0 ?ler0n ?sumr_ge0 //= ?ler_pdivr_mulr // => [|c _]; last by case/andP: (one c).
    rewrite mul1r -[X in _ <= X%:R]card_ord -sumr_const.
    by apply: ler_sum => c _; case/andP: (one c).
  - rewrite -mulr_suml exchange_big /=; under eq_bigr do rewrite plan_row (eqP (rows _)).
    by rewrite sumr_const card_ord -[_ *+ d]mulr_natr mulfK.
  - by rewrite -mulr_suml (over (fun n => plan F held n k)) plan_column (eqP (columns k)).
have [_ eqD] := certificate_sound (L := fun k => (l k)%:R) KE
  (fun n => eqP (rows n)) (fun k => congr1 _ (eqP (columns k))) contentP.
rewrite -(ler_pmul2l d_gt0) -D_copies -eqD /value -(over (fun n => \sum_k copies n k * plan F held n k)).
rewrite mulr_sumr le_eqVlt; apply/orP; left; apply/eqP/eq_bigr => i _.
rewrite exchange_big mulr_sumr; apply: eq_bigr => k _ /=.
rewrite /average mulrCA [d%:R * _]mulrC divfK // mulr_sumr.
by apply: eq_bigr => c _; rewrite /copies enum_rankK.
Qed.

End Copies.

(* ------------------------------------------- the theorems *)
Section StrongDuality.
Variables (F : realFieldType) (T E K : nat) (scores : 'I_T -> 'I_E -> F).
Implicit Types (k : 'I_E).

Theorem strong_duality (d : nat) (l : 'I_E -> nat) : (K <= E)%N -> (0 < d)%N ->
  (forall k, (l k <= T * d)%N) -> (\sum_k l k = K * (T * d))%N ->
  exists x p, let L := fun k => (l k)%:R / d%:R in optimal K scores L x /\ value scores x = D K scores L p.
Proof.
move=> KE d0 l_le sum_l.
have size : #|{: 'I_T * 'I_d}| = (T * d)%N by rewrite card_prod !card_ord.
have [held0 planned0] : exists held, @whole_plan #|{: 'I_T * 'I_d}| E K l held.
  by apply: whole_plan_exists; rewrite size.
have [held [p [planned contentP]]] := best_whole_plan (copies (d := d) scores) planned0.
by exists (average F held), p; apply: average_optimal.
Qed.

Theorem equal_targets_duality : (K <= E)%N -> (0 < E)%N ->
  exists x p, [/\ optimal K scores (even F T K) x, value scores x = D K scores (even F T K) p &
                  spread p <= score_range scores].
Proof.
move=> KE E0; pose l (k : 'I_E) := (K * T)%N.
have size : #|{: 'I_T * 'I_E}| = (T * E)%N by rewrite card_prod !card_ord.
have [held0 planned0] : exists held, @whole_plan #|{: 'I_T * 'I_E}| E K l held.
  apply: whole_plan_exists; rewrite size /l; first by rewrite mulnC leq_mul2l KE orbT.
  by rewrite sum_nat_const card_ord mulnC mulnA.
have [held [p [planned contentP]]] := best_whole_plan (copies (d := E) scores) planned0.
have /andP[_ /forallP columns] := planned.
have [q contentQ narrow] : exists2 q, content (copies (d := E) scores) held q &
    spread q <= score_range (copies (d := E) scores).
  by apply: (narrow_bias (p := p)) => // j k; rewrite (eqP (columns j)) (eqP (columns k)).
have [best gap] := average_optimal KE E0 planned contentQ.
exists (average F held), q; split=> //; exact: le_trans narrow (score_range_copies E scores).
Qed.

Theorem feasible_iff (L : 'I_E -> F) : (exists x : 'I_T -> 'I_E -> F, feasible K L x) <->
  (forall k, 0 <= L k <= T%:R) /\ \sum_k L k = (K * T)%:R.
Proof.
split=> [[x [bounds rows columns]]|[bounds total]].
  split=> [k|].
    rewrite -columns sumr_ge0 => [|i _]; last by case/andP: (bounds i k).
    by rewrite -[X in _ <= X%:R]card_ord -sumr_const; apply: ler_sum => i _; case/andP: (bounds i k).
  under eq_bigr do rewrite -columns.
  rewrite exchange_big /=; under eq_bigr do rewrite rows.
  by rewrite sumr_const card_ord natrM mulr_natr.
exists (fun _ k => L k / T%:R).
have [T0|T0] := posnP T.
  have none (i : 'I_T) : False by have := ltn_ord i; rewrite [X in (_ < X)%N]T0.
  split=> [i|i|k]; try by case: (none i).
  rewrite big1 => [|i _]; last by case: (none i).
  by have := bounds k; rewrite T0 => /le_anti ->.
have T_neq0 : T%:R != 0 :> F by rewrite pnatr_eq0 -lt0n.
split=> [i k|i|k].
- have /andP[L0 LT] := bounds k.
  by rewrite divr_ge0 ?ler0n //= ler_pdivr_mulr ?ltr0n // mul1r.
- by rewrite -mulr_suml total natrM mulfK.
by rewrite sumr_const card_ord -[_ *+ T]mulr_natr divfK.
Qed.

End StrongDuality.
