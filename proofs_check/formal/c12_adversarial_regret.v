(* C12, adversarial regret of the proportional rule without projection: equal targets, p_0 = 0, any batches, any K < E.
   C10 against a comparator q, with two more facts: |A_n - L|^2 is at most T^2 (K - K^2 / E), whatever the scores, as no
   load exceeds T; and D does not change when q moves by a constant, so that |q|^2 may be taken as E spread(q)^2 / 4:

     2 eta sum_(n < N) (D_n(p_n) - D_n(q))  <=  E spread(q)^2 / 4 + eta^2 N T^2 (K - K^2 / E).

   The best bias for all batches together is an optimal dual of all their tokens, so it can be chosen with spread <= rho
   (strong_duality.v). With the best step the bound is the product of two square roots,
   T (rho / 2) sqrt(N K (E - K)). *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
From alflb Require Import definitions topk duality c10_constant_step strong_duality.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section BoundedViolation.
Variables (F : realFieldType) (T E K : nat) (scores : 'I_T -> 'I_E -> F).
Hypothesis KE : (K <= E)%N.

Theorem squared_violation_le (p : 'I_E -> F) :
  squared_violation K scores (even F T K) p <= T%:R ^+ 2 * (K%:R - K%:R ^+ 2 / E%:R).
Proof.
have load_le_T k : (load K scores p k)%:R <= T%:R :> F.
  by rewrite ler_nat -[X in (_ <= X)%N]card_ord; apply: max_card.
have [E0|E0] := posnP E.
  have K0 : K = 0%N by apply/eqP; move: KE; rewrite E0 leqn0.
  rewrite /squared_violation big1 ?K0 ?subr_ge0 ?expr0n ?mul0r ?subrr ?mulr0 // => k.
  by have := ltn_ord k; rewrite [X in (_ < X)%N]E0.
have E_neq0 : E%:R != 0 :> F by rewrite pnatr_eq0 -lt0n.
have total : \sum_k (load K scores p k)%:R = (K * T)%:R :> F by rewrite -natr_sum sum_loads.
have -> : T%:R ^+ 2 * (K%:R - K%:R ^+ 2 / E%:R) =
    \sum_k (T%:R * (load K scores p k)%:R - 2%:R * even F T K k * (load K scores p k)%:R + even F T K k ^+ 2).
  rewrite /even big_split sumrB /= -!mulr_sumr total sumr_const card_ord natrM -[_ *+ E]mulr_natr.
  by field.
apply: ler_sum => k _; set a := (load _ _ _ _)%:R; have a0 : 0 <= a by rewrite ler0n.
rewrite -subr_ge0; set l := even _ _ _ _.
have -> : T%:R * a - 2%:R * l * a + l ^+ 2 - (a - l) ^+ 2 = a * (T%:R - a) by ring.
by rewrite mulr_ge0 // subr_ge0 load_le_T.
Qed.

(* The gauge: D does not see a constant. *)
Lemma D_gauge (c : F) q : (0 < E)%N -> D K scores (even F T K) (fun k => q k + c) = D K scores (even F T K) q.
Proof.
move=> E0; have E_neq0 : E%:R != 0 :> F by rewrite pnatr_eq0 -lt0n.
have top i : top_sum K (biased scores (fun k => q k + c) i) = top_sum K (biased scores q i) + K%:R * c.
  have same : topk K (biased scores (fun k => q k + c) i) = topk K (biased scores q i).
    apply/setP=> k; rewrite !inE; congr (_ < _)%N; apply: eq_card => j.
    by rewrite !inE /beats /biased !addrA ltr_add2r (inj_eq (addIr c)).
  rewrite /top_sum same; under eq_bigr do rewrite /biased addrA.
  by rewrite big_split sumr_const card_topk // mulr_natl.
have sum_targets : \sum_(k < E) even F T K k = (K * T)%:R.
  by rewrite /even sumr_const card_ord -[_ *+ E]mulr_natr divfK.
have shift : \sum_k even F T K k * (q k + c) = \sum_k even F T K k * q k + (K * T)%:R * c.
  by rewrite -sum_targets mulr_suml -big_split; apply: eq_bigr => k _; rewrite mulrDr.
rewrite /D shift; under eq_bigr do rewrite top.
rewrite big_split sumr_const card_ord -[_ * c *+ T]mulr_natr natrM /=.
have cancel (x y z : F) : x + z - (y + z) = x - y by ring.
by rewrite mulrAC cancel.
Qed.

End BoundedViolation.

Section Regret.
Variables (F : realFieldType) (T E K : nat) (eta : F) (batch : nat -> 'I_T -> 'I_E -> F).
Hypotheses (KE : (K <= E)%N) (E0 : (0 < E)%N) (eta0 : 0 < eta).
Local Notation L := (even F T K).
Local Notation D n := (D K (batch n) L).
Local Notation bias := (online_bias K eta batch (fun=> L) (fun=> 0)).

(* Every q is, up to a constant, within E spread(q)^2 / 4 of 0. *)
Lemma centered q : exists c,
  squared_distance (fun=> 0 : F) (fun k : 'I_E => q k + c) <= E%:R * (spread q / 2%:R) ^+ 2.
Proof.
case: (@Order.TotalTheory.arg_minP _ _ _ (Ordinal E0) xpredT q isT) => j _ lowest.
exists (- (q j + spread q / 2%:R)); rewrite -[X in X%:R * _]card_ord mulr_natl -sumr_const.
apply: ler_sum => k _; rewrite -subr_ge0 subr_sqr.
have := spread_ge q k j; have := lowest k isT; set s := spread q => lo hi.
have -> : s / 2%:R - (0 - (q k + - (q j + s / 2%:R))) = q k - q j by field.
have -> : s / 2%:R + (0 - (q k + - (q j + s / 2%:R))) = s - (q k - q j) by field.
by rewrite mulr_ge0 // subr_ge0.
Qed.

(* At every step size: eta is bias per token of shortfall, 1 / T of the step size of g = A / T - K / E. *)
Theorem online_regret q N :
  2%:R * eta * (\sum_(0 <= n < N) (D n (bias n) - D n q)) <=
  E%:R * (spread q / 2%:R) ^+ 2 + eta ^+ 2 * (N%:R * (T%:R ^+ 2 * (K%:R - K%:R ^+ 2 / E%:R))).
Proof.
have [c near] := centered q.
have := constant_step (T := fun=> T) KE eta0 batch (fun=> L) (fun=> 0) (fun k => q k + c) N.
under eq_bigr do rewrite D_gauge //.
move/le_trans; apply; rewrite ler_add // ler_wpmul2l ?sqr_ge0 // -[N in N%:R]subn0 mulr_natl -sumr_const_nat.
by apply: ler_sum => n _; apply: squared_violation_le.
Qed.

Lemma narrow_regret q N rho a b : spread q <= rho -> 0 < a -> 0 < b -> eta = a / b ->
  a ^+ 2 = E%:R * (rho / 2%:R) ^+ 2 -> b ^+ 2 = N%:R * (T%:R ^+ 2 * (K%:R - K%:R ^+ 2 / E%:R)) ->
  \sum_(0 <= n < N) (D n (bias n) - D n q) <= a * b.
Proof.
move=> q_rho a0 b0 etaE aE bE; have eta2 : 0 < 2%:R * eta by rewrite mulr_gt0 ?ltr0n.
rewrite -(ler_pmul2l eta2); apply: le_trans (online_regret q N) _.
have half_ge0 : 0 <= 2%:R^-1 :> F by rewrite invr_ge0 ler0n.
apply: (@le_trans _ _ (a ^+ 2 + eta ^+ 2 * b ^+ 2)).
  rewrite bE aE ler_add2r ler_wpmul2l ?ler0n // ler_expn2r // ?nnegrE.
  - by rewrite mulr_ge0 // spread_ge0.
  - by rewrite mulr_ge0 // (le_trans (spread_ge0 q)).
  by rewrite ler_wpmul2r.
by rewrite le_eqVlt; apply/orP; left; apply/eqP; rewrite etaE; field; rewrite gt_eqF.
Qed.

(* The best fixed bias for the first N batches is an optimal dual of all their tokens together. *)
Lemma best_fixed_bias N rho : (forall n, score_range (batch n) <= rho) ->
  exists2 best, spread best <= rho & forall q, \sum_(0 <= n < N) D n best <= \sum_(0 <= n < N) D n q.
Proof.
move=> range; pose P := #|{: 'I_N * 'I_T}|.
pose pooled (t : 'I_P) := batch (enum_val t).1 (enum_val t).2.
have rho0 : 0 <= rho := le_trans (score_range_ge0 _) (range 0%N).
have D_pooled q : definitions.D K pooled (even F P K) q = \sum_(0 <= n < N) D n q.
  rewrite /definitions.D sumrB big_mkord -(sum_copies (fun n i => top_sum K (biased (batch n) q i))); congr (_ - _).
  rewrite sumr_const_nat subn0 -[RHS]mulr_natl mulr_sumr; apply: eq_bigr => k _.
  by rewrite /even /P card_prod !card_ord mulnCA natrM !mulrA.
have [x [best [[fx _] gap narrow]]] := equal_targets_duality pooled KE E0.
exists best => [|q]; last by rewrite -!D_pooled -gap weak_duality.
apply: le_trans narrow _; apply: bigmax_le => // t.
exact: le_trans (le_bigmax (fun i => spread (batch (enum_val t).1 i)) (enum_val t).2) (range _).
Qed.

(* a and b are square roots; eta = a / b. *)
Theorem adversarial_regret q N rho a b : (forall n, score_range (batch n) <= rho) ->
  0 < a -> 0 < b -> eta = a / b ->
  a ^+ 2 = E%:R * (rho / 2%:R) ^+ 2 -> b ^+ 2 = N%:R * (T%:R ^+ 2 * (K%:R - K%:R ^+ 2 / E%:R)) ->
  \sum_(0 <= n < N) (D n (bias n) - D n q) <= a * b.
Proof.
move=> range a0 b0 etaE aE bE; have [best narrow least] := best_fixed_bias N range.
apply: le_trans (narrow_regret narrow a0 b0 etaE aE bE).
by rewrite [leLHS]sumrB [leRHS]sumrB ler_add2l ler_opp2 least.
Qed.

End Regret.
